/* SPDX-License-Identifier: BSD-3-Clause */
/* Sizes, durations and names of disks, as users write them. */
#include <string.h>

#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/units.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	char *text = input_text(&in), shown[BM_UNITS_TEXT];
	uint64_t value = 0, again = 0;

	if (!bm_parse_size(text, &value)) {
		demand(value <= INT64_MAX);
		demand(strlen(bm_format_size(shown, value)) < sizeof(shown));
		snprintf(shown, sizeof(shown), "%llu", (unsigned long long)value);
		demand(!bm_parse_size(shown, &again) && again == value);
	}
	if (!bm_parse_duration(text, &value)) {
		demand(value <= INT64_MAX);
		demand(strlen(bm_format_duration(shown, value)) < sizeof(shown));
	}
	/* It becomes a file's name. */
	if (!bm_disk_name_check(text, NULL))
		demand(*text && *text != '.' && !strchr(text, '/') && strlen(text) < 128);
	free(text);
	return 0;
}
