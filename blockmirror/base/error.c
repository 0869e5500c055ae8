/* SPDX-License-Identifier: BSD-3-Clause */
/* Error codes: one table for names, exit codes and errno values. */
#include "blockmirror/error.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *name;
	int exit, err;
} codes[BM_CODES] = {
	[BM_OK] = {"OK", 0, 0},
	[BM_E_USAGE] = {"E_USAGE", 2, EINVAL},
	[BM_E_URI] = {"E_URI", 2, EINVAL},
	[BM_E_NOT_FOUND] = {"E_NOT_FOUND", 4, ENOENT},
	[BM_E_EXISTS] = {"E_EXISTS", 3, EEXIST},
	[BM_E_SAME] = {"E_SAME", 3, EINVAL},
	[BM_E_TOO_SMALL] = {"E_TOO_SMALL", 3, EFBIG},
	[BM_E_LOCKED] = {"E_LOCKED", 3, EAGAIN},
	[BM_E_OWNED] = {"E_OWNED", 3, EBUSY},
	[BM_E_RETIRED] = {"E_RETIRED", 3, ESTALE},
	[BM_E_UNUSABLE] = {"E_UNUSABLE", 3, ESTALE},
	[BM_E_ACCESS] = {"E_ACCESS", 3, EACCES},
	[BM_E_ENOSPC] = {"E_ENOSPC", 3, ENOSPC},
	[BM_E_SIZE] = {"E_SIZE", 3, EINVAL},
	[BM_E_NOT_IMAGE] = {"E_NOT_IMAGE", 3, EINVAL},
	[BM_E_BUSY] = {"E_BUSY", 3, EBUSY},
	[BM_E_FINISHED] = {"E_FINISHED", 3, EALREADY},
	[BM_E_NOT_READY] = {"E_NOT_READY", 3, EAGAIN},
	[BM_E_UNSUPPORTED] = {"E_UNSUPPORTED", 3, EOPNOTSUPP},
	[BM_E_UNREACHABLE] = {"E_UNREACHABLE", 7, EHOSTUNREACH},
	[BM_E_RECORD] = {"E_RECORD", 6, EUCLEAN},
	[BM_E_INTERRUPTED] = {"E_INTERRUPTED", 1, EINTR},
	[BM_E_CANCELLED] = {"E_CANCELLED", 1, ECANCELED},
	[BM_E_IO] = {"E_IO", 1, EIO},
	[BM_E_COMPARE] = {"E_COMPARE", 8, EIO},
	[BM_E_INTERNAL] = {"E_INTERNAL", 1, ENOMEM},
	[BM_E_DIFFERED] = {"E_DIFFERED", 1, EIO},
	[BM_E_FOREIGN] = {"E_FOREIGN", 1, ESTALE},
	[BM_E_TARGET_LOST] = {"E_TARGET_LOST", 1, EHOSTUNREACH},
	[BM_E_SPLIT] = {"E_SPLIT", 3, EBUSY},
	[BM_E_QMP] = {"E_QMP", 3, EPROTO},
	[BM_E_QMP_BUSY] = {"E_QMP_BUSY", 3, EBUSY},
	[BM_E_LINKED] = {"E_LINKED", 3, EMLINK},
	[BM_E_BUDGET] = {"E_BUDGET", 5, ETIME},
	[BM_E_HOOK] = {"E_HOOK", 3, ECANCELED},
	[BM_E_ID_REUSED] = {"E_ID_REUSED", 3, EEXIST},
	[BM_E_MAINTENANCE] = {"E_MAINTENANCE", 3, EBUSY},
	[BM_E_MEMORY] = {"E_MEMORY", 3, ENOMEM},
	[BM_E_CPU] = {"E_CPU", 3, EOPNOTSUPP},
	[BM_E_HOST] = {"E_HOST", 3, EOPNOTSUPP},
	[BM_E_DENIED] = {"E_DENIED", 3, EACCES},
};

const char *bm_code_name(enum bm_code code)
{
	return (unsigned)code < BM_CODES ? codes[code].name : "E_INTERNAL";
}

enum bm_code bm_code_by_name(const char *name)
{
	for (int i = 0; i < BM_CODES; i++)
		if (!strcmp(codes[i].name, name))
			return (enum bm_code)i;
	return BM_E_INTERNAL;
}

int bm_code_exit(enum bm_code code)
{
	return (unsigned)code < BM_CODES ? codes[code].exit : 1;
}

/* One line, whatever names had in them. */
static void flatten(char *text)
{
	for (; *text; text++)
		if (iscntrl((unsigned char)*text))
			*text = '?';
}

int bm_fail(struct bm_error *error, enum bm_code code, const char *format, ...)
{
	va_list args;

	if (error) {
		error->code = code;
		va_start(args, format);
		vsnprintf(error->text, sizeof(error->text), format, args);
		va_end(args);
		flatten(error->text);
	}
	return -codes[code].err;
}

static enum bm_code code_of_errno(int err)
{
	switch (err) {
	case ENOENT:
	case ENOTDIR:
	case ENXIO:
		return BM_E_NOT_FOUND;
	case EACCES:
	case EPERM:
	case EROFS:
		return BM_E_ACCESS;
	case ENOSPC:
	case EDQUOT:
		return BM_E_ENOSPC;
	case EEXIST:
		return BM_E_EXISTS;
	case EISDIR:
		return BM_E_NOT_IMAGE;
	case EBUSY:
	case ETXTBSY:
		return BM_E_LOCKED;
	case ECONNREFUSED:
	case ECONNRESET:
	case ENOTCONN:
	case ESHUTDOWN:
	case EHOSTUNREACH:
	case ENETUNREACH:
	case ETIMEDOUT:
		return BM_E_UNREACHABLE;
	case ENOMEM:
	case EMFILE:
	case ENFILE:
		return BM_E_INTERNAL;
	case EOPNOTSUPP:
		return BM_E_UNSUPPORTED;
	case EINVAL:
	case ENAMETOOLONG:
	case ELOOP:
		return BM_E_USAGE;
	default:
		return BM_E_IO;
	}
}

int bm_fail_errno(struct bm_error *error, int err, const char *format, ...)
{
	va_list args;
	size_t used;

	err = abs(err);
	if (error) {
		error->code = code_of_errno(err);
		va_start(args, format);
		vsnprintf(error->text, sizeof(error->text), format, args);
		va_end(args);
		used = strlen(error->text);
		snprintf(error->text + used, sizeof(error->text) - used, ": %s", strerror(err));
		flatten(error->text);
	}
	return -err;
}
