/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fakejvm: a process that looks like a JVM and does nothing
 *
 * Its arguments are only there to be seen: the agent reads them in /proc. So one program plays the Worker, the driver, its
 * children and every look-alike. It is told what to do through its standard input and answers on its standard output, and
 * a child's input is a pipe that its parent holds: when the test goes away, all of them end. An alarm ends them in any case.
 *
 * Records on standard input: fields separated by \x1f, ended by \x1e.
 *   spawn DIRECTORY [NAME=VALUE...] -- ARGV...   fork a child of this program with that argv; the child says "ready PID PPID"
 *   tell PID FIELDS...                           pass the fields on as a record to a child
 *   exit CODE                                    end
 * Lines on standard output: "ready PID PPID"; of a child that has ended and been reaped "exited PID CODE" or "killed PID SIGNAL".
 *
 * Environment: FAKEJVM_SIGTERM what SIGTERM does: "die" (default), "exit0", "ignore", or a number: exit 143 so many milliseconds later;
 * FAKEJVM_EOF=stay: outlive the end of the input (an orphan); FAKEJVM_REAP=no: leave dead children as zombies;
 * FAKEJVM_NAME: the name of the process, default "java".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define FIELD '\x1f'
#define RECORD '\x1e'
#define LIFE_SECONDS 300
#define INPUT_MAX (1024 * 1024)
#define FIELDS_MAX 4096
#define CHILDREN_MAX 512

static char input[INPUT_MAX + 1];
static size_t input_size;
static struct {
        pid_t pid;
        int fd;
} children[CHILDREN_MAX];

static void die(const char *what) {
        (void)fprintf(stderr, "fakejvm: %s: %s\n", what, strerror(errno));
        _exit(99);
}

/* One write each: lines of several processes on one pipe must not mix. */
static void say(const char *word, int pid, int value) {
        char line[80];
        int size = snprintf(line, sizeof line, "%s %d %d\n", word, pid, value);

        if (size > 0 && write(STDOUT_FILENO, line, (size_t)size) < 0)
                _exit(98); /* the test is gone */
}

static const char *setting(const char *name, const char *otherwise) {
        const char *value = getenv(name);

        return value ? value : otherwise;
}

static void become(char *directory, char *fields[], size_t count, int fd) {
        size_t i = 0;
        sigset_t none;

        for (; i < count && strcmp(fields[i], "--") != 0; i++)
                if (putenv(fields[i]) != 0)
                        die("putenv");
        if (i >= count || dup2(fd, STDIN_FILENO) < 0 || chdir(directory) < 0)
                die(directory);
        (void)sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        fields[count] = NULL;
        (void)execv("/proc/self/exe", fields + i + 1);
        die("exec");
}

static void spawn(char *fields[], size_t count) {
        int pipe_fds[2];
        size_t slot = 0;
        pid_t pid;

        while (slot < CHILDREN_MAX && children[slot].pid != 0)
                slot++;
        if (slot == CHILDREN_MAX || count < 3 || pipe2(pipe_fds, O_CLOEXEC) < 0)
                die("spawn");
        pid = fork();
        if (pid < 0)
                die("fork");
        if (pid == 0)
                become(fields[0], fields + 1, count - 1, pipe_fds[0]);
        (void)close(pipe_fds[0]);
        children[slot].pid = pid;
        children[slot].fd = pipe_fds[1];
}

static void tell(char *fields[], size_t count) {
        for (size_t slot = 0; slot < CHILDREN_MAX; slot++) {
                if (children[slot].pid == 0 || children[slot].pid != (pid_t)strtol(fields[0], NULL, 10))
                        continue;
                for (size_t i = 1; i < count; i++)
                        (void)dprintf(children[slot].fd, "%s%c", fields[i], i + 1 < count ? FIELD : RECORD);
        }
}

static void obey(char *record) {
        static char *fields[FIELDS_MAX + 1];
        size_t count = 0;

        while (record && count < FIELDS_MAX) {
                char *end = strchr(record, FIELD);

                if (end)
                        *end++ = '\0';
                fields[count++] = record;
                record = end;
        }
        if (strcmp(fields[0], "spawn") == 0)
                spawn(fields + 1, count - 1);
        else if (strcmp(fields[0], "tell") == 0 && count > 2)
                tell(fields + 1, count - 1);
        else if (strcmp(fields[0], "exit") == 0 && count == 2)
                _exit((int)strtol(fields[1], NULL, 10));
        else
                die(fields[0]);
}

/* Read what is there; false at the end of the input. */
static bool read_input(void) {
        ssize_t got = read(STDIN_FILENO, input + input_size, INPUT_MAX - input_size);
        char *end;

        if (got <= 0)
                return false;
        input_size += (size_t)got;
        input[input_size] = '\0';
        while ((end = memchr(input, RECORD, input_size))) {
                size_t used = (size_t)(end - input) + 1;

                *end = '\0';
                obey(input);
                memmove(input, input + used, input_size - used + 1);
                input_size -= used;
        }
        return true;
}

static void reap(void) {
        int status;
        pid_t pid;

        while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
                for (size_t slot = 0; slot < CHILDREN_MAX; slot++) {
                        if (children[slot].pid == pid) {
                                (void)close(children[slot].fd);
                                children[slot].pid = 0;
                        }
                }
                say(WIFEXITED(status) ? "exited" : "killed", pid, WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
        }
}

static int make_signals(const char *on_term) {
        sigset_t signals;

        (void)sigemptyset(&signals);
        if (strcmp(setting("FAKEJVM_REAP", "yes"), "yes") == 0)
                (void)sigaddset(&signals, SIGCHLD);
        if (strcmp(on_term, "die") != 0)
                (void)sigaddset(&signals, SIGTERM);
        if (sigprocmask(SIG_BLOCK, &signals, NULL) < 0)
                die("sigprocmask");
        return signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
}

int main(void) {
        const char *on_term = setting("FAKEJVM_SIGTERM", "die");
        bool stay = strcmp(setting("FAKEJVM_EOF", "end"), "stay") == 0;
        struct pollfd fds[2] = { { .fd = make_signals(on_term), .events = POLLIN }, { .fd = STDIN_FILENO, .events = POLLIN } };
        int wait_msec = -1;

        (void)alarm(LIFE_SECONDS);
        (void)prctl(PR_SET_NAME, setting("FAKEJVM_NAME", "java"));
        say("ready", getpid(), getppid());
        while (true) {
                struct signalfd_siginfo info;
                int r = poll(fds, 2, wait_msec);

                if (r == 0)
                        _exit(143);
                if (r < 0 && errno != EINTR)
                        die("poll");
                if (fds[1].revents && !read_input()) {
                        if (!stay)
                                _exit(0);
                        fds[1].fd = -1;
                        fds[1].revents = 0;
                }
                while (read(fds[0].fd, &info, sizeof info) == (ssize_t)sizeof info) {
                        if (info.ssi_signo == SIGCHLD)
                                reap();
                        else if (strcmp(on_term, "exit0") == 0)
                                _exit(0);
                        else if (strcmp(on_term, "ignore") != 0)
                                wait_msec = (int)strtol(on_term, NULL, 10);
                }
        }
}
