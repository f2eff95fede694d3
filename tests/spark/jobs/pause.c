/* SPDX-License-Identifier: Apache-2.0 */
/* A process with whatever argv it was given: the body of the look-alikes. */
#include <unistd.h>

int main(void) {
        for (;;)
                pause();
}
