/* SPDX-License-Identifier: BSD-3-Clause */
/* Sizes, rates and durations as people write and read them. Any thread. */
#ifndef BM_BASE_UNITS_H
#define BM_BASE_UNITS_H

#include <stddef.h>
#include <stdint.h>

enum { BM_UNITS_TEXT = 32 };

/*
 * Bytes: digits, then nothing or one of k M G T P (powers of 1024, either case, "KiB" and "KB"
 * spellings too). Returns 0, -EINVAL when it is no number, -ERANGE when it does not fit 63 bits.
 */
int bm_parse_size(const char *text, uint64_t *bytes);

/* A number with nothing (ms), us, ms, s, m (minutes) or h, fractions allowed; in ns. */
int bm_parse_duration(const char *text, uint64_t *ns);

/* "1.5 GiB"; returns text, which has room for BM_UNITS_TEXT bytes. */
char *bm_format_size(char *text, uint64_t bytes);

/* "840 us", "12.3 ms", "4.1 s", "3 min 20 s". */
char *bm_format_duration(char *text, uint64_t ns);

#endif
