# SPDX-License-Identifier: BSD-3-Clause
# What "make check" and its relatives run. Included by the Makefile.

MODEL_TESTS := $(patsubst tests/model/%.c,$(BUILD)/tests/model/%,$(wildcard tests/model/*_test.c))
# For check-long: what tests the load generator and the two hosts themselves, with a guest and with
# servers that lie, networks that fail, and whole moves under the sanitizers, which see the engine and
# the server in the tests below.
LONG_TESTS := tests/system/hammer_guest.sh tests/system/hammer_detects.sh tests/system/sanitized.sh \
	tests/fault/stale_session.sh tests/fault/network.sh tests/fault/power_teeth.sh \
	tests/fault/death_teeth.sh tests/fault/soak.sh tests/fault/target_other.sh \
	tests/fault/target_trouble.sh tests/fault/target_loss.sh tests/fault/session_taken.sh \
	tests/system/virsh_migrate.sh tests/system/libvirt_guest.sh tests/system/hosts.sh \
	tests/fault/slip_death.sh tests/system/live_copy_guest.sh \
	tests/system/slip_cycles.sh tests/fault/hand_over.sh tests/system/nbd_interop.sh \
	tests/system/shared_death.sh tests/fault/ram_lost.sh tests/system/migrate_trouble.sh \
	tests/system/native_teeth.sh tests/system/native_kvm.sh tests/system/native_machine.sh \
	tests/system/ram_relay.sh tests/fault/machine_death.sh tests/system/migrate_policy.sh \
	tests/fault/machine_guest.sh tests/system/migrate_network.sh tests/system/migrate_sixteen.sh \
	tests/fault/machine_fence.sh tests/system/migrate_reserve.sh tests/system/drain_guests.sh \
	tests/system/slip_unnamed.sh tests/system/slip_formats.sh tests/fault/slip_qmp.sh \
	tests/system/migrate_media.sh tests/system/migrate_bind.sh tests/system/migrate_tpm.sh \
	tests/system/migrate_peer.sh tests/fault/machine_fence_shared.sh
# Hours by itself.
EVERY_CALL := tests/fault/every_call.sh
# They do more with LONG=1.
WIDE_TESTS := tests/system/nbd_conformance.sh tests/system/upgrade.sh tests/fault/storage_lost.sh \
	tests/fault/lying.sh tests/system/formats.sh tests/system/peer_x509.sh tests/system/shared.sh \
	tests/system/hook_relocate.sh tests/system/hooks_fail.sh tests/system/migrate_shared.sh
SYSTEM_TESTS := $(filter-out %/lib.sh $(LONG_TESTS) $(EVERY_CALL),$(wildcard tests/system/*.sh tests/fault/*.sh))
ASAN := $(BUILD)/asan
TSAN := $(BUILD)/tsan
AS_ASAN := BUILD=$(ASAN) SAN=address,undefined CFLAGS="-O1 -g1"
AS_TSAN := BUILD=$(TSAN) SAN=thread CFLAGS="-O1 -g"
MODEL_SEEDS ?= 10000
# Each once found a fault.
FOUND_SEEDS := 1106457 116236

# Builds use all cores, unless the caller says how many.
PARALLEL := $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))

unit-tests: $(UNIT_TESTS) $(MODEL_TESTS)
tests: unit-tests

include tests/fuzz/fuzz.mk

MODEL_OBJ := $(call objects,$(filter-out %_test.c,$(wildcard tests/model/*.c)))
$(MODEL_TESTS): $(MODEL_OBJ)
$(BUILD)/tests/unit/daemon_test: $(call objects,$(filter-out %/main.c,$(DAEMON_SRC)))
$(BUILD)/tests/unit/drain_plan_test: $(call objects,blockmirror/cli/drain_plan.c)
$(BUILD)/tests/unit/balance_plan_test: $(call objects,blockmirror/cli/balance_plan.c)
$(BUILD)/tests/unit/machine_test: $(call objects,$(MACHINE_SRC))
$(BUILD)/tests/unit/qmp_test: $(call objects,$(MACHINE_SRC))
$(BUILD)/tests/unit/announce_test: $(call objects,$(filter-out %/move_main.c,$(MOVE_SRC)))
$(BUILD)/tests/unit/requests_test: $(call objects,blockmirror/cli/claim.c)
$(BUILD)/tests/unit/gate_test: $(call objects,blockmirror/disk/gate.c)
$(BUILD)/tests/unit/slot_test: $(call objects,blockmirror/disk/slot.c)

# Everything that a commit must pass, within ten minutes on two cores. What waits most is begun
# first, beside what computes.
check:
	$(Q)$(MAKE) --no-print-directory $(PARALLEL) all tests asan-tests tsan-tests
	$(Q)BUILD=$(BUILD) tests/run $(BUILD)/test-logs tests/lint.sh $(SYSTEM_TESTS) tests/model/promela.sh \
		$(BUILD)/tests/model/mirror_test:-n:$(MODEL_SEEDS) \
		$(foreach seed,$(FOUND_SEEDS),$(BUILD)/tests/model/mirror_test:-c:-s:$(seed):-n:1) \
		$(ASAN)/tests/model/mirror_test:-n:700 $(TSAN)/tests/model/mirror_test:-n:200 \
		$(UNIT_TESTS) $(UNIT_TESTS:$(BUILD)/%=$(ASAN)/%) $(TSAN)/tests/unit/loop_test \
		$(TSAN)/tests/unit/ram_thread_test \
		$(foreach target,$(FUZZ_TARGETS),$(call replay,$(target))) tests/valgrind.sh

# What "check" takes of the sanitizers' builds, and no more: they take longest.
asan-tests:
	$(Q)$(MAKE) --no-print-directory $(AS_ASAN) $(ASAN)/blockmirror-nbd unit-tests replays

tsan-tests:
	$(Q)$(MAKE) --no-print-directory $(AS_TSAN) $(TSAN)/blockmirror-nbd $(TSAN)/tests/unit/loop_test \
		$(TSAN)/tests/unit/ram_thread_test $(TSAN)/tests/model/mirror_test

check-unit: all tests
	$(Q)tests/run $(BUILD)/test-logs $(UNIT_TESTS)

check-mutants: tests
	$(Q)BUILD=$(BUILD) TEST_TIMEOUT=36000 tests/run $(BUILD)/test-logs tests/model/mutants.sh \
		tests/conformance/mutants.sh

# Hours: a million seeds, each call that can fail, the mutants, clients for minutes, the system tests
# with sanitizers.
check-long: all tests
	$(Q)$(MAKE) --no-print-directory $(AS_ASAN) all tests replays
	$(Q)$(MAKE) --no-print-directory $(AS_TSAN) all tests
	$(Q)BUILD=$(BUILD) LOAD_SECONDS=60 tests/run $(BUILD)/test-logs tests/system/nbd_many.sh
	$(Q)BUILD=$(BUILD) TEST_TIMEOUT=36000 tests/run $(BUILD)/test-logs \
		$(BUILD)/tests/model/mirror_test:-n:1000000:-s:100000 \
		$(ASAN)/tests/model/mirror_test:-n:100000:-s:2000000 tests/model/mutants.sh \
		tests/conformance/mutants.sh
	$(Q)BUILD=$(BUILD) CYCLES=100 RUNS=300 JOBS=2 TEST_TIMEOUT=3600 tests/run $(BUILD)/test-logs \
		tests/fault/power.sh tests/fault/death.sh
	$(Q)BUILD=$(BUILD) ANALYZE=1 LONG=1 TEST_TIMEOUT=3600 tests/run $(BUILD)/test-logs \
		tests/lint.sh $(WIDE_TESTS) $(LONG_TESTS)
	$(Q)BUILD=$(BUILD) LONG=1 TEST_TIMEOUT=36000 tests/run $(BUILD)/test-logs $(EVERY_CALL)
	$(Q)BUILD=$(ASAN) tests/run $(ASAN)/test-logs $(SYSTEM_TESTS)

bench: all
	$(Q)BUILD=$(BUILD) tests/bench/bench.sh
	$(Q)BUILD=$(BUILD) IOPS=1000 ENGINES="ours peer-background" tests/bench/bench.sh
	$(Q)BUILD=$(BUILD) tests/bench/nbd.sh
	$(Q)BUILD=$(BUILD) tests/bench/remote.sh
	$(Q)BUILD=$(BUILD) tests/bench/machine.sh

.PHONY: unit-tests check check-unit check-mutants check-long asan-tests tsan-tests bench
