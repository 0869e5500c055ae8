/* SPDX-License-Identifier: BSD-3-Clause */
/* Programs that are out of memory. */
#include "blockmirror/base/memory.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/error.h"

/* At once: what runs when a process ends may want memory, too. */
static _Noreturn void give_up(void)
{
	static const char text[] = "E_INTERNAL: out of memory; the process ends\n";

	(void)!write(STDERR_FILENO, text, strlen(text));
	_exit(bm_code_exit(BM_E_INTERNAL));
}

void *bm_need(void *memory)
{
	if (!memory)
		give_up();
	return memory;
}

static void *json_memory(size_t size)
{
	return bm_need(malloc(size ? size : 1));
}

void bm_json_needs_memory(void)
{
	json_set_alloc_funcs(json_memory, free);
}
