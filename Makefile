# SPDX-License-Identifier: Apache-2.0
# spark-cancel-agent: `make` builds into $(BUILD); `make check` runs every suite; `make demo` shows a real cancel.

BUILD ?= build
CC ?= gcc
PYTHON ?= /usr/bin/python3
PKG_CONFIG ?= pkg-config
SANITIZE ?=
VERSION := $(shell cat VERSION)

PACKAGES := libsystemd libnghttp2 openssl libprotobuf-c libcurl json-c sqlite3 inih

WARNINGS := -Wall -Wextra -Wconversion -Wshadow -Wswitch-enum -Wundef -Wpointer-arith -Wwrite-strings \
	-Wmissing-prototypes -Wstrict-prototypes -Wformat=2 -Wvla -Werror
OPTIMIZE ?= -O2 -g
HARDEN := -fPIE -fstack-protector-strong -fstack-clash-protection -fno-strict-aliasing
LDHARDEN := -pie -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack -Wl,--as-needed
ifneq ($(shell uname -m | grep -E 'x86_64'),)
HARDEN += -fcf-protection=full
endif
ifneq ($(SANITIZE),)
OPTIMIZE := -O1 -g -fno-omit-frame-pointer
HARDEN += -fsanitize=$(SANITIZE) -fno-sanitize-recover=all
LDHARDEN += -fsanitize=$(SANITIZE)
DEFINES := -DDEBUG_CHECKS=1
else
HARDEN += -D_FORTIFY_SOURCE=2
DEFINES ?=
endif

GENERATED := $(BUILD)/generated
CPPFLAGS_ALL := -D_GNU_SOURCE -DVERSION='"$(VERSION)"' $(DEFINES) -Icommon -Iagent -isystem $(GENERATED) \
	$(shell $(PKG_CONFIG) --cflags $(PACKAGES)) $(CPPFLAGS)
CFLAGS_ALL := -std=gnu17 $(OPTIMIZE) $(WARNINGS) $(HARDEN) -pthread -fno-common -ffunction-sections $(CFLAGS)
LDFLAGS_ALL := $(LDHARDEN) -Wl,--gc-sections -pthread $(LDFLAGS)
LIBS := $(shell $(PKG_CONFIG) --libs $(PACKAGES))

# ---- generated protobuf-c code ------------------------------------------------------------------------
PROTO_INCLUDE ?= /usr/include
PROTOS := google/rpc/status.proto google/rpc/error_details.proto yandex/cloud/operation/operation.proto \
	yandex/cloud/spark/v1/job.proto yandex/cloud/spark/v1/job_service.proto \
	sparkcancel/agent/v1/cancel_agent_service.proto
WELL_KNOWN := google/protobuf/any.proto google/protobuf/duration.proto google/protobuf/timestamp.proto
PROTO_C := $(patsubst %.proto,$(GENERATED)/%.pb-c.c,$(PROTOS) $(WELL_KNOWN))
PROTO_O := $(PROTO_C:.c=.o)

COMMON_C := $(wildcard common/*.c)
AGENT_C := $(filter-out agent/main.c agent/ctl.c,$(wildcard agent/*.c))
LIBRARY_O := $(patsubst %.c,$(BUILD)/%.o,$(COMMON_C) $(AGENT_C)) $(PROTO_O)
PROGRAMS := $(BUILD)/spark-cancel-agent $(BUILD)/spark-cancelctl

.PHONY: all
all: $(PROGRAMS)

$(GENERATED)/.stamp: $(addprefix common/proto/,$(PROTOS))
	@mkdir -p $(GENERATED)
	protoc-c -Icommon/proto -I$(PROTO_INCLUDE) --c_out=$(GENERATED) $(addprefix common/proto/,$(PROTOS)) \
		$(addprefix $(PROTO_INCLUDE)/,$(WELL_KNOWN))
	@touch $@
$(PROTO_C): $(GENERATED)/.stamp ;

$(GENERATED)/%.o: $(GENERATED)/%.c
	$(CC) -std=gnu17 -w $(OPTIMIZE) $(HARDEN) -I$(GENERATED) $(shell $(PKG_CONFIG) --cflags libprotobuf-c) -c $< -o $@

$(BUILD)/%.o: %.c $(GENERATED)/.stamp Makefile VERSION
	@mkdir -p $(dir $@)
	$(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) -MMD -MP -c $< -o $@

$(BUILD)/library.a: $(LIBRARY_O)
	@rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/spark-cancel-agent: $(BUILD)/agent/main.o $(BUILD)/library.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS)

$(BUILD)/spark-cancelctl: $(BUILD)/agent/ctl.o $(BUILD)/library.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(shell $(PKG_CONFIG) --libs libsystemd)

# ---- tests ----------------------------------------------------------------------------------------------
UNIT_C := $(wildcard tests/unit/test_*.c)
UNIT := $(patsubst tests/unit/%.c,$(BUILD)/unit/%,$(UNIT_C))

$(BUILD)/unit/%: tests/unit/%.c $(BUILD)/library.a
	@mkdir -p $(dir $@)
	$(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) -Wno-missing-prototypes -Itests/unit -MMD -MP $< $(BUILD)/library.a \
		$(LDFLAGS_ALL) -o $@ -lcmocka $(LIBS)

.PHONY: unit check-unit
unit: $(UNIT)
check-unit: $(UNIT)
	@for program in $(UNIT); do echo "== $$program"; $$program || exit 1; done

.PHONY: clean
clean:
	rm -rf $(BUILD)

-include $(wildcard $(BUILD)/*/*.d)
