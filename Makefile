# SPDX-License-Identifier: BSD-3-Clause
# Blockmirror: all, check, demo, bench, install. V=1 shows the commands, SAN=… builds with
# sanitizers (use another BUILD for it).

VERSION := 0.1.0
SOVERSION := 0
BUILD ?= build
prefix ?= /usr/local
bindir ?= $(prefix)/bin
sbindir ?= $(prefix)/sbin
libdir ?= $(prefix)/lib
includedir ?= $(prefix)/include
mandir ?= $(prefix)/share/man
unitdir ?= $(prefix)/lib/systemd/system
sysconfdir ?= /etc

CFLAGS ?= -O2 -g
PKGS := libnbd libiscsi jansson libxxhash libzstd gnutls inih
WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
	-Wvla -Wwrite-strings -Wconversion -Wno-sign-conversion -Wimplicit-fallthrough
BM_CFLAGS := -std=gnu17 -D_GNU_SOURCE -DBM_VERSION='"$(VERSION)"' -I. -Iinclude $(WARN) -fPIC \
	-fvisibility=hidden -pthread $(shell pkg-config --cflags $(PKGS))
LIBS := -laio -lm $(shell pkg-config --libs libnbd libiscsi jansson libzstd gnutls inih)
BM_LDFLAGS := -pthread
ifdef SAN
BM_CFLAGS += -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all
BM_LDFLAGS += -fsanitize=$(SAN)
else
BM_CFLAGS += -fstack-protector-strong
ifneq ($(findstring -O,$(CFLAGS)),)
BM_CFLAGS += -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
endif
BM_LDFLAGS += -Wl,-z,relro,-z,now
endif

Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-6s %s\n' '$(1)' '$(2)')

sources = $(wildcard $(addsuffix /*.c,$(1)))
objects = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))

ALL_C := $(shell find blockmirror nbd-server include tests fixtures -name '*.[ch]')
LIB_SRC := $(call sources,blockmirror/base blockmirror/dev blockmirror/mirror blockmirror/ram)
MAIN_SRC := $(wildcard nbd-server/main*.c)
NBD_SRC := $(filter-out $(MAIN_SRC),$(call sources,nbd-server))
DISK_SRC := $(call sources,blockmirror/disk)
DAEMON_SRC := $(call sources,blockmirror/daemon)
MACHINE_SRC := $(addprefix blockmirror/machine/,cmdline.c drive.c exchange.c graph.c inventory.c qmp.c)
CLI_SRC := $(call sources,blockmirror/cli) $(MACHINE_SRC)
MOVE_SRC := $(wildcard blockmirror/machine/move*.c blockmirror/machine/preflight*.c) $(addprefix blockmirror/machine/,cmdline.c drive.c graph.c qmp.c)
PROGRAMS := $(addprefix $(BUILD)/,blockmirror blockmirror-disk blockmirrord blockmirror-nbd blockmirror-move)
LIBRARIES := $(BUILD)/libblockmirror.a $(BUILD)/libblockmirror.so
UNIT_TESTS := $(patsubst tests/unit/%.c,$(BUILD)/tests/unit/%,$(wildcard tests/unit/*_test.c))
HAMMER_SRC := $(call sources,fixtures/hammer)
CONFORMANCE_SRC := $(call sources,fixtures/conformance)
TINYVM_SRC := $(call sources,fixtures/tinyvm)
FIXTURES := $(patsubst fixtures/%.c,$(BUILD)/fixtures/%,$(wildcard fixtures/*.c)) \
	$(BUILD)/fixtures/hammer $(BUILD)/fixtures/conformance $(BUILD)/fixtures/kth.so $(BUILD)/fixtures/record.so \
	$(BUILD)/fixtures/tinyvm

all: $(PROGRAMS) $(LIBRARIES)

$(BUILD)/obj/%.o: %.c
	$(call say,CC,$<)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(BM_CFLAGS) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/libblockmirror.a: $(call objects,$(LIB_SRC))
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(BUILD)/libblockmirror.so: $(call objects,$(LIB_SRC)) include/libblockmirror.map
	$(call say,LD,$@)
	$(Q)$(CC) -shared -Wl,-soname,libblockmirror.so.$(SOVERSION) \
		-Wl,--version-script,include/libblockmirror.map $(BM_LDFLAGS) $(LDFLAGS) -o $@ \
		$(filter %.o,$^) $(LIBS)

$(BUILD)/libnbdserver.a: $(call objects,$(NBD_SRC))
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(BUILD)/blockmirror-disk: $(call objects,$(DISK_SRC)) $(BUILD)/libnbdserver.a $(BUILD)/libblockmirror.a
	$(call say,LD,$@)
	$(Q)$(CC) $(BM_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/blockmirror-nbd: $(call objects,$(MAIN_SRC)) $(BUILD)/libnbdserver.a $(BUILD)/libblockmirror.a
	$(call say,LD,$@)
	$(Q)$(CC) $(BM_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/obj/blockmirror/cli/hook_libvirt.o $(BUILD)/obj/blockmirror/cli/hook_resume.o: BM_CFLAGS += $(shell pkg-config --cflags libxml-2.0)
$(BUILD)/blockmirror: LIBS += $(shell pkg-config --libs libxml-2.0)
$(BUILD)/blockmirror: $(call objects,$(CLI_SRC)) $(BUILD)/libblockmirror.a
	$(call say,LD,$@)
	$(Q)$(CC) $(BM_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/blockmirrord: $(call objects,$(DAEMON_SRC)) $(BUILD)/libblockmirror.a
	$(call say,LD,$@)
	$(Q)$(CC) $(BM_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/blockmirror-move: $(call objects,$(MOVE_SRC)) $(BUILD)/libblockmirror.a
	$(call say,LD,$@)
	$(Q)$(CC) $(BM_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(BUILD)/libnbdserver.a $(BUILD)/libblockmirror.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(BM_LDFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) -lcmocka $(LIBS)

$(BUILD)/fixtures/%: $(BUILD)/obj/fixtures/%.o $(BUILD)/libblockmirror.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(BM_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/fixtures/hammer: $(call objects,$(HAMMER_SRC)) $(BUILD)/libblockmirror.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(BM_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/fixtures/tinyvm: $(call objects,$(TINYVM_SRC)) $(BUILD)/libblockmirror.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(BM_LDFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/obj/fixtures/powerfs.o: BM_CFLAGS += $(shell pkg-config --cflags fuse3)
$(BUILD)/fixtures/powerfs: LIBS += $(shell pkg-config --libs fuse3)

# Of the project it takes nothing: it checks what the rest has made.
$(BUILD)/fixtures/conformance: $(call objects,$(CONFORMANCE_SRC))
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(BM_LDFLAGS) $(LDFLAGS) -o $@ $^ $(shell pkg-config --libs gnutls)

# Preloaded into programs under test: nothing of the project is in it, and no sanitizer.
$(BUILD)/fixtures/%.so: fixtures/preload/%.c
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) -std=gnu17 -D_GNU_SOURCE $(WARN) -Wno-nonnull-compare -fPIC -shared -O2 -g -o $@ $< -ldl

tests: $(FIXTURES)

# Every Debian package that building, the demo and the tests need.
PACKAGES := build-essential pkg-config clang-format-14 clang-tidy-14 shellcheck valgrind mandoc \
	libaio-dev libnbd-dev libiscsi-dev libjansson-dev libxxhash-dev libzstd-dev libgnutls28-dev libxml2-dev \
	libcmocka-dev libinih-dev python3-yaml gnutls-bin \
	qemu-system-x86 qemu-utils qemu-block-extra nbdkit libnbd-bin tgt libiscsi-bin fio \
	busybox-static jq bc socat faketime attr xfsprogs e2fsprogs libfuse3-dev procps util-linux iproute2 \
	python3 python3-libnbd strace nftables libxml2-utils git clang-14 afl++ nbd-client nbd-server spin \
	libvirt-daemon libvirt-clients swtpm
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

deps:
	$(SUDO) apt-get update -qq
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		$(PACKAGES)

demo: all tests
	$(Q)BUILD=$(BUILD) fixtures/demo.sh $(BUILD)/guest

format:
	clang-format-14 -i $(ALL_C)

install: all
	install -d $(DESTDIR)$(bindir) $(DESTDIR)$(sbindir) $(DESTDIR)$(libdir) \
		$(DESTDIR)$(includedir)/blockmirror $(DESTDIR)$(mandir)/man1 $(DESTDIR)$(mandir)/man3 \
		$(DESTDIR)$(mandir)/man5 $(DESTDIR)$(mandir)/man8 \
		$(DESTDIR)$(unitdir)
	install $(BUILD)/blockmirror $(BUILD)/blockmirror-disk $(DESTDIR)$(bindir)
	install $(BUILD)/blockmirror-move $(DESTDIR)$(sbindir)
	install $(BUILD)/blockmirror-nbd $(DESTDIR)$(sbindir)
	install $(BUILD)/blockmirrord $(DESTDIR)$(sbindir)
	install -d $(DESTDIR)$(prefix)/share/blockmirror/hooks/qemu
	install etc/hooks/qemu/* $(DESTDIR)$(prefix)/share/blockmirror/hooks/qemu
	install -D etc/libvirt/qemu.d/blockmirror $(DESTDIR)$(sysconfdir)/libvirt/hooks/qemu.d/blockmirror
	sed 's|@sbindir@|$(sbindir)|' etc/blockmirrord.service >$(DESTDIR)$(unitdir)/blockmirrord.service
	install -m 644 $(BUILD)/libblockmirror.a $(DESTDIR)$(libdir)
	install -m 755 $(BUILD)/libblockmirror.so $(DESTDIR)$(libdir)/libblockmirror.so.$(SOVERSION)
	ln -sf libblockmirror.so.$(SOVERSION) $(DESTDIR)$(libdir)/libblockmirror.so
	install -m 644 include/blockmirror/*.h $(DESTDIR)$(includedir)/blockmirror
	install -m 644 man/*.1 $(DESTDIR)$(mandir)/man1
	install -m 644 man/*.3 $(DESTDIR)$(mandir)/man3
	install -m 644 man/*.5 $(DESTDIR)$(mandir)/man5
	install -m 644 man/*.8 $(DESTDIR)$(mandir)/man8

include tests/tests.mk

clean:
	rm -rf $(BUILD)

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)

.SECONDARY:
.PHONY: all tests deps demo format install clean
