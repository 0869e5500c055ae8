/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Log lines on stderr, one per call, with the "<N>" prefix of sd-daemon(3) when stderr goes to
 * the journal (JOURNAL_STREAM is set) and a time stamp when not; control characters are shown as
 * "?". Any thread. Never log secrets: URIs go through bm_uri_redact().
 */
#ifndef BM_BASE_LOG_H
#define BM_BASE_LOG_H

enum bm_log_level { BM_LOG_ERROR = 3, BM_LOG_WARN = 4, BM_LOG_NOTICE = 5, BM_LOG_DEBUG = 7 };

/* What is above max is dropped; the default is BM_LOG_NOTICE. ident starts each line. */
void bm_log_setup(const char *ident, enum bm_log_level max);

void bm_log(enum bm_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
