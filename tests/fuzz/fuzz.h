/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the fuzz targets share. A target is a function over bytes that somebody else chose. It is
 * called over and over in one process, does the same for the same bytes, and leaves nothing behind.
 * libFuzzer calls it ("make fuzz"), or replay.c, with the inputs of tests/fuzz/corpus ("make
 * check").
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What holds whatever the input is. */
#define demand(condition)                                                                       \
	do {                                                                                    \
		if (!(condition)) {                                                             \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                                \
		}                                                                               \
	} while (0)

/* Reading the input; what is not there is zero. */
struct input {
	const uint8_t *at;
	size_t left;
};

static inline uint8_t input_u8(struct input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->at++;
}

static inline uint16_t input_u16(struct input *in)
{
	unsigned high = input_u8(in);

	return (uint16_t)(high << 8 | input_u8(in));
}

/* As many bytes as there are, at most length, which becomes their number. */
static inline const uint8_t *input_take(struct input *in, size_t *length)
{
	const uint8_t *at = in->at;

	if (*length > in->left)
		*length = in->left;
	in->at += *length;
	in->left -= *length;
	return at;
}

/* A C string of all that is left. malloc()ed. */
static inline char *input_text(struct input *in)
{
	char *text = malloc(in->left + 1);

	demand(text);
	for (size_t i = 0; i < in->left; i++)
		text[i] = (char)in->at[i];
	text[in->left] = '\0';
	in->left = 0;
	return text;
}

#endif
