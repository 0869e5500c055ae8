/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a disk process reads from files that may be damaged: the record, and the marks on images.
 * The first byte says what the rest is: bit 0 a mark, else a record; bit 1 its checksum is right.
 */
#include <sys/xattr.h>

#include "blockmirror/base/record.c"
#include "tests/fuzz/fuzz.h"

enum { MARK = 1, CHECKSUM = 2 };

static const char *attribute;

/* Stands before that of the C library: there is no file. */
__attribute__((visibility("default"))) ssize_t getxattr(const char *path, const char *name,
							void *value, size_t size)
{
	(void)path, (void)name;
	if (strlen(attribute) > size) {
		errno = ERANGE;
		return -1;
	}
	memcpy(value, attribute, strlen(attribute));
	return (ssize_t)strlen(attribute);
}

static void fuzz_mark(const char *text)
{
	struct bm_mark mark;

	attribute = text;
	if (bm_mark_read("image", &mark) < 0)
		return;
	demand(strnlen(mark.state, sizeof(mark.state)) < sizeof(mark.state));
	demand(strnlen(mark.disk, sizeof(mark.disk)) < sizeof(mark.disk));
	demand(strnlen(mark.folder, sizeof(mark.folder)) < sizeof(mark.folder));
	demand(strnlen(mark.where, sizeof(mark.where)) < sizeof(mark.where));
}

/* What was read is written as what is read again. */
static void check_record(const struct bm_record *record)
{
	bm_free char *text = format(record);
	bm_record_auto struct bm_record again = {0};

	demand(record->name && record->disk && record->uri);
	demand(text && !parse("again", text, &again, NULL));
	demand(again.generation == record->generation && again.size == record->size);
	demand(!strcmp(again.name, record->name) && !strcmp(again.disk, record->disk));
	demand(!strcmp(again.uri, record->uri));
	demand(record->job ? json_equal(record->job, again.job) : !again.job);
}

static void fuzz_record(const char *text)
{
	bm_record_auto struct bm_record record = {0};
	struct bm_error error = {0};

	if (!parse("record", text, &record, &error))
		check_record(&record);
	else
		demand(error.code == BM_E_RECORD && *error.text && !record.name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	unsigned what = input_u8(&in);
	bm_free char *text = input_text(&in), *whole = NULL;

	if (what & MARK) {
		fuzz_mark(text);
	} else if (what & CHECKSUM) {
		text[strcspn(text, "\n")] = '\0';
		demand(asprintf(&whole, "%s\nxxh64 %016" PRIx64 "\n", text,
				XXH64(text, strlen(text), FORMAT)) > 0);
		fuzz_record(whole);
	} else {
		fuzz_record(text);
	}
	return 0;
}
