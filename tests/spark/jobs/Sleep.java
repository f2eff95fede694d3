// SPDX-License-Identifier: Apache-2.0

/** A plain job: says that it runs, then sleeps until it is ended. Arguments: [seconds [exit code]]. */
public final class Sleep {
    private Sleep() {}

    public static void main(String[] arguments) throws InterruptedException {
        System.out.println("running");
        long seconds = arguments.length > 0 ? Long.parseLong(arguments[0]) : 3600;
        for (long i = 0; i < seconds; i++) {
            Thread.sleep(1000);
        }
        System.out.println("ended by itself");
        System.exit(arguments.length > 1 ? Integer.parseInt(arguments[1]) : 0);
    }
}
