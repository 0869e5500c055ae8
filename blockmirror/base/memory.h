/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Memory for words: names, records, answers. A program that cannot have a few bytes of it ends, and
 * says so: the next process finds all in the record, and its clients connect again. To go on with
 * half a record would be worse; libjansson, out of memory, drops letters from what it reads.
 * For programs only: a library's caller has his own ways.
 */
#ifndef BM_BASE_MEMORY_H
#define BM_BASE_MEMORY_H

/* What it is given, and not NULL: else the process ends. */
void *bm_need(void *memory);

/* So does it when there is no memory for JSON. Before the first use of that. */
void bm_json_needs_memory(void);

#endif
