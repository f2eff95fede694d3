/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ctl: spark-cancelctl, the operator's tool on a node: command line and dispatch
 *
 * A client of the agent's local socket: each command is a method call or two. Only `check` can do without the agent,
 * since it is wanted before the first start.
 *
 * Exit codes, for scripts: 0 fine; 1 the answer is no (no such operation, not allowed, reload refused, nothing would be
 * killed, not cancelled, this node could not cancel); 2 wrong usage; 3 the agent can't be reached.
 */
#include "ctl_internal.h"

#include <getopt.h>

enum argument { ARGUMENT_NONE, ARGUMENT_OPERATION, ARGUMENT_JOB };

struct command {
        const char *name;
        enum argument argument;
        const char *help;
        const char *options; /* those that go with it, of "awcu" */
        int (*run)(sd_bus *bus, const struct ctl_options *options);
};

static const struct command commands[] = {
        {"status", ARGUMENT_NONE, "is it connected, is it able, what is it doing", "", ctl_status},
        {"list", ARGUMENT_NONE, "the open operations; with --all those that have ended, too", "a", ctl_list},
        {"show", ARGUMENT_OPERATION, "all that is known of one operation", "", ctl_show},
        {"find", ARGUMENT_JOB, "which process a cancel would kill, and which not, and why", "", ctl_find},
        {"cancel", ARGUMENT_JOB, "cancel a job here, control plane or not (privileged)", "w", ctl_cancel},
        {"retry", ARGUMENT_OPERATION, "send a rejected report again (privileged)", "", ctl_retry},
        {"reload", ARGUMENT_NONE, "read the configuration again (privileged)", "", ctl_reload},
        {"metrics", ARGUMENT_NONE, "the metrics as Prometheus text", "", ctl_metrics},
        {"check", ARGUMENT_NONE, "could this node cancel a job? Works without an agent, too", "cu", ctl_check},
};

static const char *argument_name(const struct command *command) {
        switch (command->argument) {
        case ARGUMENT_NONE:
                return "";
        case ARGUMENT_OPERATION:
                return "OPERATION";
        case ARGUMENT_JOB:
                return "JOB";
        }
        return "";
}

static int print_help(void) {
        puts("Usage: spark-cancelctl [OPTIONS] COMMAND\n\nSpeaks with the spark-cancel-agent of this "
             "node.\n\nCommands:");
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
                printf("  %s %-*s  %s\n", commands[i].name, (int)(17 - strlen(commands[i].name)),
                       argument_name(&commands[i]), commands[i].help);
        puts("\nOptions:\n"
             "  --all                for list: ended operations, too\n"
             "  --wait               for cancel: until it has ended; exit code 0 only when the job is cancelled or was at its end\n"
             "  --config=FILE        for check: by this file, without asking an agent\n"
             "  --user=NAME          for check without an agent: the service's user (default: " CTL_USER_DEFAULT ")\n"
             "  --json               print JSON; times are microseconds since 1970\n"
             "  --socket=PATH        the agent's socket (default: " CTL_SOCKET_DEFAULT ")\n"
             "  --help, --version\n\n"
             "Exit codes: 0 fine, 1 the answer is no, 2 wrong usage, 3 the agent can't be reached.\n"
             "Privileged commands are for root, the agent's own user and group " BUS_GROUP ".");
        return ctl_finish_output();
}

static int usage(const char *what, const char *which) {
        char shown[128];

        base_text_escape(shown, sizeof(shown), which, strlen(which));
        (void)fprintf(stderr, "spark-cancelctl: %s%s (see spark-cancelctl --help)\n", what, shown);
        return CTL_USAGE;
}

static const struct command *find_command(const char *name) {
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
                if (strcmp(commands[i].name, name) == 0)
                        return &commands[i];
        return NULL;
}

static int run_command(const struct command *command, const struct ctl_options *options) {
        _cleanup_(sd_bus_close_unrefp) sd_bus *bus = NULL;
        bool alone = command->run == ctl_check;

        if (alone && options->config)
                return ctl_check_alone(options);
        int r = ctl_connect(options->socket, &bus);
        if (r < 0 && alone) {
                struct ctl_options defaults = *options;
                defaults.config = CTL_CONFIG_DEFAULT;
                return ctl_check_alone(&defaults);
        }
        return r < 0 ? ctl_unreachable(options->socket, r) : command->run(bus, options);
}

static int check_argument(const struct command *command, const char *argument) {
        switch (command->argument) {
        case ARGUMENT_NONE:
                return 0;
        case ARGUMENT_OPERATION:
                return base_id_is_valid(argument, strlen(argument), OPERATION_ID_MAX)
                               ? 0
                               : usage("not an operation's id: ", argument);
        case ARGUMENT_JOB:
                return base_id_is_valid(argument, strlen(argument), JOB_ID_MAX) ? 0 : usage("not a job's id: ", argument);
        }
        return 0;
}

static int check_options(const struct command *command, const struct ctl_options *options) {
        const struct {
                bool given;
                char letter;
                const char *what;
        } table[] = {
                {options->all, 'a', "--all does not go with "},
                {options->wait, 'w', "--wait does not go with "},
                {options->config, 'c', "--config does not go with "},
                {options->user, 'u', "--user does not go with "},
        };

        for (size_t i = 0; i < ARRAY_SIZE(table); i++)
                if (table[i].given && !strchr(command->options, table[i].letter))
                        return usage(table[i].what, command->name);
        return 0;
}

static int parse_operands(char **operands, int count, struct ctl_options *options, const struct command **ret) {
        if (count == 0)
                return usage("a command is missing", "");
        const struct command *command = find_command(operands[0]);
        if (!command)
                return usage("unknown command: ", operands[0]);
        bool takes = command->argument != ARGUMENT_NONE;
        if (takes && count < 2)
                return usage(command->argument == ARGUMENT_JOB ? "a job's id is missing after "
                                                               : "an operation's id is missing after ",
                             command->name);
        if (count > (takes ? 2 : 1))
                return usage("too much: ", operands[takes ? 2 : 1]);
        int code = check_options(command, options);
        if (code == 0)
                code = check_argument(command, takes ? operands[1] : "");
        if (code)
                return code;
        options->argument = takes ? operands[1] : NULL;
        if (!options->user)
                options->user = CTL_USER_DEFAULT;
        *ret = command;
        return 0;
}

int main(int argc, char **argv) {
        static const struct option longs[] = {
                {"all", no_argument, NULL, 'a'},          {"json", no_argument, NULL, 'j'},
                {"wait", no_argument, NULL, 'w'},         {"config", required_argument, NULL, 'c'},
                {"user", required_argument, NULL, 'u'},   {"socket", required_argument, NULL, 's'},
                {"help", no_argument, NULL, 'h'},         {"version", no_argument, NULL, 'V'},
                {0},
        };
        struct ctl_options options = {.socket = CTL_SOCKET_DEFAULT};
        const struct command *command = NULL;
        int option;

        while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1)
                switch (option) {
                case 'a':
                        options.all = true;
                        break;
                case 'j':
                        options.json = true;
                        break;
                case 'w':
                        options.wait = true;
                        break;
                case 'c':
                        options.config = optarg;
                        break;
                case 'u':
                        options.user = optarg;
                        break;
                case 's':
                        options.socket = optarg;
                        break;
                case 'h':
                        return print_help();
                case 'V':
                        puts("spark-cancelctl " VERSION);
                        return ctl_finish_output();
                default:
                        return CTL_USAGE; /* getopt_long(3) has said why */
                }
        int code = parse_operands(argv + optind, argc - optind, &options, &command);
        return code ? code : run_command(command, &options);
}
