/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who may open which export. Lines only ever give: their order does not matter, and a line that is
 * wrong makes the whole file so.
 */
#include "nbd-server/acl.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/identity.h"
#include "blockmirror/base/log.h"

enum { LONGEST_FILE = 256 << 10 };

struct rule {
	struct rule *next;
	char *who;    /* base/identity.h; NULL: anyone */
	char *export; /* NULL: all of them */
	enum nbd_access access;
};

struct nbd_acl {
	char *path;
	struct bm_stamp stamp;
	struct rule *first;
};

static void free_rules(struct rule *rule)
{
	while (rule) {
		struct rule *next = rule->next;

		free(rule->who);
		free(rule->export);
		free(rule);
		rule = next;
	}
}

/* Reading */

struct word {
	char *text; /* NULL: the line is at its end */
	bool quoted;
};

/*
 * Words are divided by blanks; what is between double quotes belongs to one, where \" and \\ stand
 * for themselves. Unquotes in place. Returns false when a quote is not closed.
 */
static bool next_word(char **line, struct word *word)
{
	char *from = *line, *to;
	bool inside = false;

	while (isspace((unsigned char)*from))
		from++;
	*word = (struct word){*from && *from != '#' ? from : NULL, false};
	if (!word->text)
		return true;
	for (to = from; *from && (inside || !isspace((unsigned char)*from)); from++) {
		if (*from == '"') {
			inside = !inside;
			word->quoted = true;
			continue;
		}
		if (inside && *from == '\\' && (from[1] == '"' || from[1] == '\\'))
			from++;
		*to++ = *from;
	}
	*line = *from ? from + 1 : from;
	*to = '\0';
	return !inside;
}

/* Returns what is wrong, or NULL. */
static const char *parse_who(struct rule *rule, const char *who)
{
	if (!strcmp(who, "anyone"))
		return NULL;
	rule->who = bm_identity_name(who);
	if (rule->who)
		return NULL;
	return strncmp(who, "ip:", 3)
		       ? "who is anyone, or one of psk: dn: dns: ip: uri: email: and a name"
		       : "not an IP address";
}

static const char *parse_line(struct rule *rule, char *line)
{
	struct word who, export, access, more;
	const char *wrong;

	if (!next_word(&line, &who) || !next_word(&line, &export) || !next_word(&line, &access) ||
	    !next_word(&line, &more))
		return "a quote is not closed";
	if (!access.text || more.text)
		return "WHO EXPORT ACCESS are expected";
	if (!strcmp(access.text, "read-write"))
		rule->access = NBD_ACCESS_WRITE;
	else if (!strcmp(access.text, "read-only"))
		rule->access = NBD_ACCESS_READ;
	else
		return "the access is read-only or read-write";
	wrong = parse_who(rule, who.text);
	if (wrong || (!export.quoted && !strcmp(export.text, "*")))
		return wrong;
	rule->export = strdup(export.text);
	return rule->export ? NULL : "out of memory";
}

static bool is_empty(const char *line)
{
	line += strspn(line, " \t\r");
	return !*line || *line == '#';
}

static int parse(char *text, const char *path, struct rule **first, struct bm_error *error)
{
	struct rule **end = first;
	unsigned number = 0;

	*first = NULL;
	for (char *line; (line = strsep(&text, "\n"));) {
		const char *wrong;

		number++;
		if (is_empty(line))
			continue;
		*end = calloc(1, sizeof(**end));
		wrong = *end ? parse_line(*end, line) : "out of memory";
		if (!wrong) {
			end = &(*end)->next;
			continue;
		}
		free_rules(*first);
		return bm_fail(error, BM_E_USAGE, "%s, line %u: %s", path, number, wrong);
	}
	return 0;
}

int nbd_acl_reload(struct nbd_acl *acl, struct bm_error *error)
{
	bm_free char *text = NULL;
	struct rule *rules;
	int r;

	acl->stamp = bm_stamp(acl->path); /* what changes from here on is read next time */
	r = bm_read_text(acl->path, LONGEST_FILE, &text);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot read %s", acl->path);
	r = parse(text, acl->path, &rules, error);
	if (r < 0)
		return r;
	free_rules(acl->first);
	acl->first = rules;
	return 0;
}

int nbd_acl_open(const char *path, struct nbd_acl **acl, struct bm_error *error)
{
	struct nbd_acl *made = calloc(1, sizeof(*made));
	int r;

	if (made)
		made->path = strdup(path);
	if (!made || !made->path)
		r = bm_fail_errno(error, ENOMEM, "cannot read %s", path);
	else
		r = nbd_acl_reload(made, error);
	if (r < 0)
		nbd_acl_free(made);
	else
		*acl = made;
	return r;
}

void nbd_acl_free(struct nbd_acl *acl)
{
	if (!acl)
		return;
	free_rules(acl->first);
	free(acl->path);
	free(acl);
}

/* Deciding */

enum nbd_access nbd_acl_access(struct nbd_acl *acl, const struct bm_identity *who,
			       const char *export)
{
	struct bm_stamp stamp = bm_stamp(acl->path);
	enum nbd_access access = NBD_ACCESS_NONE;
	struct bm_error error;

	if (!bm_stamp_same(&stamp, &acl->stamp) && nbd_acl_reload(acl, &error) < 0)
		bm_log(BM_LOG_WARN, "access goes on with what was given before: %s", error.text);
	for (const struct rule *rule = acl->first; rule; rule = rule->next)
		if ((!rule->export || !strcmp(rule->export, export)) && rule->access > access &&
		    (!rule->who || bm_identity_is(who, rule->who)))
			access = rule->access;
	return access;
}

static bool is_key(const struct rule *rule)
{
	return !strncmp(rule->who, "psk:", 4);
}

bool nbd_acl_names_keys(const struct nbd_acl *acl)
{
	for (const struct rule *rule = acl->first; rule; rule = rule->next)
		if (rule->who && is_key(rule))
			return true;
	return false;
}

bool nbd_acl_names_certificates(const struct nbd_acl *acl)
{
	for (const struct rule *rule = acl->first; rule; rule = rule->next)
		if (rule->who && !is_key(rule))
			return true;
	return false;
}
