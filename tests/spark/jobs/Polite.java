// SPDX-License-Identifier: Apache-2.0

/** A job that exits with 0 on SIGTERM: Spark then calls it FINISHED although it was killed. */
public final class Polite {
    private Polite() {}

    public static void main(String[] arguments) throws InterruptedException {
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            System.out.println("SIGTERM heard, ending with 0");
            Runtime.getRuntime().halt(0);
        }));
        System.out.println("running");
        Thread.sleep(3_600_000);
    }
}
