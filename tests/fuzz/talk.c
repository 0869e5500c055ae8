/* SPDX-License-Identifier: BSD-3-Clause */
/* A client's view of the handshake. */
#include "tests/fuzz/talk.h"

#include <string.h>

enum {
	EXPORT_NAME = 1,
	ABORT = 2,
	LIST = 3,
	STARTTLS = 5,
	INFO = 6,
	GO = 7,
	STRUCTURED = 8,
	LIST_META = 9,
	SET_META = 10,
	EXTENDED = 11,
};

enum { FREE_OPTIONS = 32, LONGEST = 32 << 20, LONGEST_NAME = 4096, LONGEST_REPLY = 64 << 10 };
enum { REPLY_HEADER = 20 };

#define GREETING       "NBDMAGICIHAVEOPT\0\3"
#define REPLY_MAGIC    0x0003e889045565a9u
#define HAS_FLAGS      1u
#define SEND_DF        (1u << 7)
#define STATUS_PAYLOAD (1u << 12)
#define ALL_OF_THEM    0x1fffu
#define KNOWN_ERRORS   10u

static uint64_t number(struct input *in, unsigned bytes)
{
	uint64_t value = 0;

	while (bytes--)
		value = value << 8 | input_u8(in);
	return value;
}

static void take_export(struct talk *t, struct input *in)
{
	t->size = number(in, 8);
	t->flags = input_u16(in);
	demand(t->flags & HAS_FLAGS && !(t->flags & ~ALL_OF_THEM));
	demand(!(t->flags & SEND_DF) || t->structured || t->extended);
	demand(!(t->flags & STATUS_PAYLOAD) || t->extended);
}

/* Whether a reply of that type may come before the last one of option. */
static bool may_precede(unsigned option, uint32_t type)
{
	switch (type) {
	case 2: /* NBD_REP_SERVER */
		return option == LIST;
	case 3: /* NBD_REP_INFO */
		return option == INFO || option == GO;
	case 4: /* NBD_REP_META_CONTEXT */
		return option == LIST_META || option == SET_META;
	default:
		return false;
	}
}

/* The ids are different ones. */
static void take_context(struct talk *t, uint32_t id)
{
	demand(t->contexts < TALK_CONTEXTS);
	for (unsigned i = 0; i < t->contexts; i++)
		demand(t->context[i] != id);
	t->context[t->contexts++] = id;
}

static void read_payload(struct talk *t, unsigned option, uint32_t type, struct input payload,
			 bool *sizes)
{
	if (type == 2) {
		uint64_t name = number(&payload, 4);

		demand(name <= payload.left);
	} else if (type == 3) {
		demand(payload.left >= 2);
		if (input_u16(&payload) != 0) /* NBD_INFO_EXPORT */
			return;
		demand(payload.left == 10);
		take_export(t, &payload);
		*sizes = true;
	} else if (type == 4) {
		uint32_t id;

		demand(payload.left > 4);
		id = (uint32_t)number(&payload, 4);
		demand(memchr(payload.at, ':', payload.left));
		if (option == SET_META)
			take_context(t, id);
	}
}

static void agreed(struct talk *t, unsigned option, bool sizes)
{
	switch (option) {
	case ABORT:
		t->stopped = true;
		break;
	case STARTTLS:
		t->tls = true;
		break;
	case INFO:
	case GO:
		demand(sizes);
		t->transmission = option == GO;
		break;
	case STRUCTURED:
		demand(!t->extended); /* "NBD_REP_ERR_EXT_HEADER_REQD" */
		t->structured = true;
		break;
	case EXTENDED:
		t->extended = true;
		break;
	case LIST_META:
	case SET_META:
		demand(t->structured || t->extended);
		break;
	default:
		break;
	}
}

/* Whether there are not so many bytes. */
static bool is_cut(struct talk *t, size_t length)
{
	t->cut |= t->got.left < length;
	if (t->cut)
		t->got.left = 0;
	return t->cut;
}

/* The replies to one option, up to the last one. */
static void follow_replies(struct talk *t, unsigned option)
{
	bool sizes = false;
	uint32_t type;

	if (option == SET_META)
		t->contexts = 0;
	do {
		struct input payload;

		if (is_cut(t, REPLY_HEADER))
			return;
		demand(number(&t->got, 8) == REPLY_MAGIC && number(&t->got, 4) == option);
		type = (uint32_t)number(&t->got, 4);
		payload.left = number(&t->got, 4);
		demand(payload.left <= LONGEST_REPLY);
		if (is_cut(t, payload.left))
			return;
		payload.at = input_take(&t->got, &payload.left);
		if (type >> 31) {
			demand((type & 0x7fffffff) >= 1 && (type & 0x7fffffff) <= KNOWN_ERRORS);
			return;
		}
		demand(type == 1 || may_precede(option, type));
		demand(type != 1 || !payload.left);
		read_payload(t, option, type, payload, &sizes);
	} while (type != 1);
	agreed(t, option, sizes);
}

/* It has no reply but the export, or the end of the connection. */
static void follow_export_name(struct talk *t)
{
	size_t zeroes = t->no_zeroes ? 0 : 124;

	t->violated = t->stopped = !t->got.left;
	if (t->stopped)
		return;
	demand(t->got.left >= 10 + zeroes && !t->extended);
	take_export(t, &t->got);
	for (const uint8_t *at = input_take(&t->got, &zeroes); zeroes; zeroes--)
		demand(!*at++);
	t->transmission = true;
}

static void follow_option(struct talk *t)
{
	uint64_t magic = number(&t->sent, 8);
	unsigned option = (unsigned)number(&t->sent, 4);
	size_t length = number(&t->sent, 4), whole = length;

	/* Not an option, or one too many, or too long: "hard disconnect". */
	if (magic != 0x49484156454f5054 || length > LONGEST ||
	    (option == EXPORT_NAME && length > LONGEST_NAME) ||
	    (++t->options > FREE_OPTIONS && !t->got.left)) {
		t->violated = t->stopped = true;
		return;
	}
	input_take(&t->sent, &length);
	if (length < whole)
		return; /* it was never sent whole */
	if (option == EXPORT_NAME)
		follow_export_name(t);
	else
		follow_replies(t, option);
	/* What comes now may belong to the transmission phase, and be no request. */
	if (t->cut && option == GO)
		t->violated = t->stopped = true;
}

void talk_follow(struct talk *t)
{
	size_t greeting = sizeof(GREETING) - 1;
	uint32_t flags;

	if (!t->got.left) /* the server was not even asked to say anything */
		return;
	demand(t->got.left >= greeting && !memcmp(t->got.at, GREETING, greeting));
	input_take(&t->got, &greeting);
	if (t->sent.left < 4)
		return;
	flags = (uint32_t)number(&t->sent, 4);
	t->no_zeroes = flags & 2;
	t->violated = t->stopped = flags & ~3u;
	while (t->sent.left >= 16 && !t->stopped && !t->tls && !t->transmission)
		follow_option(t);
	/* Who has ended the conversation says nothing more. */
	demand(!t->stopped || !t->got.left);
	demand(!t->cut || t->violated);
}
