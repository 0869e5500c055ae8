# SPDX-License-Identifier: BSD-3-Clause
# What "make check" and its relatives run. Included by the Makefile.

MODEL_TESTS := $(patsubst tests/model/%.c,$(BUILD)/tests/model/%,$(wildcard tests/model/*_test.c))
SYSTEM_TESTS := $(filter-out %/lib.sh,$(wildcard tests/system/*.sh))

tests: $(MODEL_TESTS)

MODEL_OBJ := $(call objects,tests/model/fake_disk.c tests/model/oracle.c)
$(MODEL_TESTS): $(MODEL_OBJ)

check-unit: all tests
	$(Q)tests/run $(BUILD)/test-logs $(UNIT_TESTS)

.PHONY: check-unit
