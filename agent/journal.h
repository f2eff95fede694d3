/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * journal: every event an operator may meet, in one table
 *
 * One event, one MESSAGE_ID, one priority, stable fields. The table is the source for docs/events.md and for the
 * journal's catalog. Only agent.c and main.c write events; the rest of the program is silent above debug.
 */
#include "base.h"
#include "log.h"

#define JOURNAL_EVENTS(X)                                                                             \
        X(STARTED, "b635336f71ab4b95a5ac3218f70119b0", NOTICE)                                        \
        X(STOPPING, "24c5678ee7c3415d9a736ac87650ad16", NOTICE)                                       \
        X(RELOADED, "5de2f01508e24cbe8424606473055fbb", NOTICE)                                       \
        X(RELOAD_FAILED, "66810080e90445b4b4e3a0a5eaa6a67f", ERR)                                     \
        X(COMMAND_RECEIVED, "6bcebfbffeec4106addcd415922b73bf", INFO)                                 \
        X(COMMAND_INVALID, "6be728a6bc5f46a58fdd8cc44a45f007", WARNING)                               \
        X(COMMAND_UNREPORTABLE, "17176cef1c8c4aedb3c1028d878a2a1b", WARNING)                          \
        X(COMMAND_DUPLICATE, "d6573ed4a3ac4c6585b2b8d949cd451a", INFO)                                \
        X(COMMAND_WITHDRAWN, "59f0ffeb0feb4e179229714e598b5071", INFO)                                \
        X(DRIVER_NOT_HERE, "373a144582ef4b96a0ae910c9dd50bfd", INFO)                                  \
        X(DRIVER_FOUND, "84bdf740b9d8479a9dd8d7b71613e00b", INFO)                                     \
        X(DRIVER_FOREIGN, "31ce23a1234742d7ac7e8a8c0261d931", WARNING)                                \
        X(DRIVER_DIFFERS, "afff193f8ade44eaad66329d98989610", WARNING)                                \
        X(DRIVER_GONE, "06785b3ec64144cfa3ce48f6c59ffbf2", INFO)                                      \
        X(LEFTOVERS, "a76f0bdfd6b244c1a62ee9f6b448b44f", WARNING)                                     \
        X(DRIVER_SIGNALLED, "b11cfeae2c3c437596ab1e9b43a737e6", WARNING)                              \
        X(KILL_ACCEPTED, "ef138c491c8e4d649b8048a41aea4527", INFO)                                    \
        X(KILL_FAILED, "c42a742fe360415c9361ff112183e06f", WARNING)                                   \
        X(OUTCOME, "dae119f4a75647ea8a56606b87f47c6b", NOTICE)                                        \
        X(REPORT_ACKNOWLEDGED, "016408329eb4418fac4e2a0f585304d4", INFO)                              \
        X(REPORT_QUARANTINED, "566a56abcb9d4b4ab714a3bf1fa0a7e6", ERR)                                \
        X(REPORT_RETRIED, "8ce517c0ffa74d5ca75c7182bc5cf5f8", NOTICE)                                 \
        X(REPORTS_FAILING, "3441fd88909b41a9a58b5fb91286d0e5", ERR)                                   \
        X(CONNECTED, "0a39fa6221b34b7b92ca23874166c747", NOTICE)                                      \
        X(DISCONNECTED, "55f2bcc8b53240328749fd408f244988", WARNING)                                  \
        X(NODE_TAKEN, "acdcc6fd4ad241f3ae2de09bf00d56e3", ERR)                                        \
        X(HISTORY_GONE, "81beb290db684765acb39b3a1516f40c", NOTICE)                                   \
        X(PROTOCOL, "9cd7857c829a4ef584556b76b621795c", WARNING)                                      \
        X(TOKEN_FAILED, "2b53a1cb1886471c966bbe74eb958b97", ERR)                                      \
        X(CLOCK_SKEW, "b088d695157d4406b01b22083259cbc6", WARNING)                                    \
        X(STORE_FAILED, "faf4ad04abb94fafb603abddabe36ab9", ERR)                                      \
        X(STORE_RECOVERED, "525eb4dd044347e589743c11130352fe", NOTICE)                                \
        X(STORE_SLOW, "53f90cb3b1fc4452988c3a0b499ce219", ERR)                                        \
        X(STORE_SET_ASIDE, "cecb09b142804d13a4d35e583a3a3fe4", ERR)                                   \
        X(STORE_NO_RESERVE, "a2a3be3e0b604a4ab9cf4f3a84d5db0a", WARNING)                              \
        X(SCAN_FAILED, "ac571fea14614088945859a0b7795e9f", ERR)                                       \
        X(HOLD_FAILED, "b97d031d5625425aa65a4d606e6b90aa", ERR)                                       \
        X(FULL, "2fe42f7b4ed74e53a78c3f61ec69558a", WARNING)                                          \
        X(OBSERVING, "4c7f303239534137ad28e944fc639733", NOTICE)                                      \
        X(OBSERVED, "ce59da03cb6e4e5cabee217701d7a46b", NOTICE)                                       \
        X(LOCAL_CANCEL, "ad0dc44442ec42e8b9e3f5ca18c1d9e7", NOTICE)                                   \
        X(WORK_DIRECTORY, "eb52b84092634af182fd11f6682a369f", WARNING)

enum journal_event {
#define X(name, id, priority) JOURNAL_##name,
        JOURNAL_EVENTS(X)
#undef X
        JOURNAL_EVENT_MAX,
};

/* The operation that an event is about; strings may be NULL or "". */
struct journal_subject {
        const char *operation_id, *requested_by, *job_id, *cluster_id, *driver_id, *master, *state, *outcome;
        int32_t driver_pid;
};

/* journal_write() - one event; `subject` may be NULL for events of the whole program. */
void journal_write(enum journal_event event, const struct journal_subject *subject, const char *format, ...)
        __attribute__((format(printf, 3, 4)));

const char *journal_event_id(enum journal_event event);   /* 32 hex digits */
const char *journal_event_name(enum journal_event event); /* "DRIVER_FOUND" */
