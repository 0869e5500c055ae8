# SPDX-License-Identifier: BSD-3-Clause
# Fuzz targets: programs that replay their corpus, with sanitizers in make check; and with
# libFuzzer around them in $(BUILD)/fuzz (make fuzz). nbd_stdio is AFL++'s. Included by tests.mk.

FUZZ_TARGETS := $(patsubst tests/fuzz/%_fuzz.c,%,$(wildcard tests/fuzz/*_fuzz.c))
REPLAYS := $(FUZZ_TARGETS:%=$(BUILD)/tests/fuzz/%_fuzz)
FUZZERS := $(FUZZ_TARGETS:%=$(BUILD)/fuzzers/%)
replay = $(ASAN)/tests/fuzz/$(1)_fuzz:tests/fuzz/corpus/$(1)
fuzz_programs = $(BUILD)/tests/fuzz/$(1)_fuzz $(BUILD)/fuzzers/$(1)
FUZZ := $(BUILD)/fuzz
FUZZ_SECONDS ?= 60

replays: $(REPLAYS)

$(REPLAYS): $(call objects,tests/fuzz/replay.c)
$(call fuzz_programs,nbd_handshake): $(call objects,tests/fuzz/host.c tests/fuzz/talk.c)
$(call fuzz_programs,nbd_transmission) $(call fuzz_programs,nbd_status): \
	$(call objects,tests/fuzz/host.c tests/fuzz/talk.c tests/fuzz/session.c)
$(call fuzz_programs,nbd_client): $(call objects,tests/fuzz/peer.c tests/fuzz/answers.c)

$(BUILD)/fuzzers/%: $(BUILD)/obj/tests/fuzz/%_fuzz.o $(BUILD)/libnbdserver.a $(BUILD)/libblockmirror.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(BM_LDFLAGS) -fsanitize=fuzzer $(LDFLAGS) -o $@ $(filter %.o,$^) \
		$(filter %.a,$^) $(LIBS) $(NBD_LIBS)

$(BUILD)/fuzzers/nbd_stdio: $(call objects,tests/fuzz/stdio_main.c $(wildcard nbd-server/main*.c)) \
		$(BUILD)/libnbdserver.a $(BUILD)/libblockmirror.a
	$(call say,LD,$@)
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(BM_LDFLAGS) -Wl,--wrap=main $(LDFLAGS) -o $@ $^ $(LIBS) $(NBD_LIBS)

fuzzers: $(FUZZERS) replays

# gcc does not know the warning that is left out.
fuzz-build:
	$(Q)$(MAKE) --no-print-directory BUILD=$(FUZZ) CC=clang-14 \
		SAN=address,undefined,fuzzer-no-link CPPFLAGS=-Wno-bitwise-instead-of-logical fuzzers
	$(Q)AFL_QUIET=1 $(MAKE) --no-print-directory BUILD=$(FUZZ)/afl CC=afl-clang-fast \
		SAN=address,undefined CPPFLAGS=-Wno-bitwise-instead-of-logical \
		$(FUZZ)/afl/fuzzers/nbd_stdio

# A minute for each target, or $(FUZZ_SECONDS); TARGETS="nbd_client uri" chooses.
fuzz: fuzz-build
	$(Q)FUZZ=$(FUZZ) FUZZ_SECONDS=$(FUZZ_SECONDS) tests/fuzz/fuzz.sh \
		$(or $(TARGETS),$(FUZZ_TARGETS) nbd_stdio)

.PHONY: fuzz fuzz-build fuzzers replays
