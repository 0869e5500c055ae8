/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The configuration, blockmirror.conf(5): an INI file and its drop-ins, read once, by main(),
 *before there are threads. It is a JSON object, as "blockmirror --check-config --json" prints it:
 *
 *	{"defaults": {KEY: VALUE}, "limits": {KEY: VALUE}, "datastores": {NAME: {KEY: VALUE}},
 *	 "peers": {NAME: {KEY: VALUE}}}
 *
 * What is not set is not there. Sizes and numbers are integers, keys that may come again are
 * arrays, all else are strings as they were written, which are known to be good. config_keys.c has
 * the table of keys, and checks values.
 */
#ifndef BM_BASE_CONFIG_H
#define BM_BASE_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* $BLOCKMIRROR_CONFIG, or /etc/blockmirror/blockmirror.conf. */
const char *bm_config_file(void);

/*
 * Reads file and the *.conf of the folder FILE.d, in their order: a later value takes the place of
 * an earlier one. NULL: bm_config_file(), which need not be there. errors: an array of {"file",
 * "line" (0: the file itself), "message"}; what they are about is not in config. Both are the
 * caller's.
 */
void bm_config_read(const char *file, json_t **config, json_t **errors);

/* Of a section that has no name; NULL: not set. */
const char *bm_config_text(const json_t *config, const char *section, const char *key);
/* 0: not set. */
uint64_t bm_config_number(const json_t *config, const char *section, const char *key);

/*
 * What it says about folders, for this process and those that it starts, unless the environment
 * says so already: BLOCKMIRROR_RUN_DIR, BLOCKMIRROR_STATE_DIR, BLOCKMIRROR_HOOKS.
 */
void bm_config_use_folders(const json_t *config);

/* config_keys.c: whether text, "20G" or "5%", is one; of whole it makes bytes. */
bool bm_parse_share(const char *text, uint64_t whole, uint64_t *bytes);

struct config_key {
	const char *section, *name;
	/* NULL: value is good, and *out is it; or what is wanted. */
	const char *(*check)(const char *value, json_t **out);
	bool many;
};
/* NULL: there is none; known: then, what there is in that section. */
const struct config_key *config_find_key(const char *section, const char *name, char *known,
					 size_t size);

#endif
