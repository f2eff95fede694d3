// SPDX-License-Identifier: Apache-2.0

/** A job that does not end on SIGTERM: its shutdown hook never returns. Only SIGKILL ends it. */
public final class Deaf {
    private Deaf() {}

    public static void main(String[] arguments) throws InterruptedException {
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            System.out.println("SIGTERM heard and ignored");
            while (true) {
                try {
                    Thread.sleep(1000);
                } catch (InterruptedException e) {
                    // go on
                }
            }
        }));
        System.out.println("running");
        Thread.sleep(3_600_000);
    }
}
