// SPDX-License-Identifier: Apache-2.0
import org.apache.spark.SparkConf;
import org.apache.spark.api.java.JavaSparkContext;
import java.util.Arrays;
import java.util.List;

/** A job with a real SparkContext: an application at the master and tasks in an executor, until it is ended. */
public final class Context {
    private Context() {}

    /** One task: sleeps, so that the executor is busy when the job is cancelled. */
    private static int rest(int value) {
        try {
            Thread.sleep(500);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        return value;
    }

    public static void main(String[] arguments) {
        try (JavaSparkContext context = new JavaSparkContext(new SparkConf())) {
            List<Integer> numbers = Arrays.asList(1, 2, 3, 4);
            long sum = context.parallelize(numbers, 2).map(Context::rest).reduce(Integer::sum);
            System.out.println("running " + sum);
            System.out.flush();
            while (true) {
                context.parallelize(numbers, 2).map(Context::rest).count();
            }
        }
    }
}
