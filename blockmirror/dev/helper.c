/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Images in a format (qcow2 and others): QEMU knows it, and does so in a process of its own, a
 * helper: qemu-nbd, on a socket that has no name, for connections of ours alone. This device starts
 * it, and is otherwise what nbd.c makes of such a server: a helper that dies is a session that is
 * lost. What is above opens the device again, as it does with any session.
 *
 * Its life. It ends by itself when our last connection does; when this process dies, however that
 * is, the kernel tells it (base/spawn.h): before we are connected it is killed, as it has written
 * nothing of ours; then it gets SIGTERM, and brings to its image what it has in memory, since a
 * guest whose disk's process is killed must find all that was acknowledged.
 *
 * Fencing (rule 9). Requests of a dead session may still be carried out, by a helper that is not
 * done with dying. Its lock on the image lasts until the last of them is over: so who opens the
 * image takes that lock first, waits for it where a fence is wanted, and lets the new helper have
 * it. Closing does not wait, since storage that hangs would hang the loop: a thread sees the helper
 * off, and kills it if need be; who opens its image again in this process waits for that. It is no
 * worker: it may outlive the device, and the loop.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/run.h"
#include "blockmirror/base/spawn.h"
#include "blockmirror/dev/format.h"
#include "blockmirror/dev/lock.h"
#include "blockmirror/dev/nbd.h"
#include "blockmirror/dev/open.h"

enum { BACKLOG = 2 * NBD_MAX_CONNS, WORDS = 300 };
#define START_LIMIT 60000000000ull /* ns: QEMU repairs some images when it opens them */
#define LEAVE       30000000000ull /* ns for a helper to end by itself; then it is killed */
#define KILLED      10000000000ull /* ns for one that was */
#define LAST_WORDS  1000000000ull  /* ns between the end of a session and that of its helper */

struct helper {
	struct bm_dev dev;
	struct bm_dev *inner; /* the session */
	char *name;           /* the URI */
	dev_t device;
	ino_t inode;
	pid_t pid; /* 0: it has been waited for */
	int pidfd, lifeline[2], words;
	struct bm_watch watch;
	struct bm_list link; /* leaving */
};

/* Those whose device is closed and whose process lives. Of all threads. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gone = PTHREAD_COND_INITIALIZER;
static struct bm_list leaving = {&leaving, &leaving};

static void helper_free(struct helper *h)
{
	if (!h)
		return;
	if (h->pidfd >= 0)
		close(h->pidfd);
	for (int i = 0; i < 2; i++)
		if (h->lifeline[i] >= 0)
			close(h->lifeline[i]);
	if (h->words >= 0)
		close(h->words);
	free(h->name);
	free(h);
}

static void cut_lifeline(struct helper *h)
{
	if (h->lifeline[1] >= 0)
		close(h->lifeline[1]);
	h->lifeline[1] = -1;
}

/* It has ended. What it said, for the log and for errors; whether that was in good order. */
static bool reap(struct helper *h, char *text, size_t size)
{
	char words[WORDS];
	int status = 0;

	while (waitpid(h->pid, &status, 0) < 0 && errno == EINTR)
		;
	h->pid = 0;
	bm_words_read(h->words, "qemu-nbd", words, sizeof(words));
	if (WIFSIGNALED(status))
		snprintf(text, size, "signal %d (%s) %s", WTERMSIG(status),
			 strsignal(WTERMSIG(status)), words);
	else if (WEXITSTATUS(status) == BM_SPAWN_NOT_FOUND)
		snprintf(text, size,
			 "qemu-nbd was not found in PATH (in Debian it is in qemu-utils)");
	else if (*words)
		snprintf(text, size, "%s", words);
	else
		snprintf(text, size, "exit status %d", WEXITSTATUS(status));
	return !status;
}

/* Waits for its end, and sees to it. Whether it came in good order. Blocks. */
static bool end_helper(struct helper *h, char *text, size_t size)
{
	cut_lifeline(h);
	if (!bm_process_ends(h->pidfd, LEAVE, NULL, NULL)) {
		kill(h->pid, SIGKILL);
		snprintf(text, size,
			 "it cannot be killed"); /* its storage hangs; it ends without us */
		if (!bm_process_ends(h->pidfd, KILLED, NULL, NULL))
			return false;
	}
	return reap(h, text, size);
}

static void tell(const struct helper *h, const char *why)
{
	bm_log(BM_LOG_WARN, "%s: its helper, qemu-nbd, ended: %s", h->name, why);
}

/* Starting, in whatever thread */

/* A socket that listens, and a way to it that nobody else has: its name is gone again. */
static int make_socket(int *listener, int *way)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char folder[] = "/tmp/blockmirror-XXXXXX";
	bm_close int fd = -1;
	int r = 0;

	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || !mkdtemp(folder))
		return -errno;
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/socket", folder);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, BACKLOG) < 0)
		r = -errno;
	*way = r ? -1 : open(address.sun_path, O_PATH | O_CLOEXEC);
	if (!r && *way < 0)
		r = -errno;
	unlink(address.sun_path);
	rmdir(folder);
	if (!r)
		*listener = bm_steal_fd(fd);
	return r;
}

static int start(struct helper *h, const char *format, const char *path, bool direct,
		 const struct bm_open_options *options, int listener)
{
	char format_option[40], shared[40];
	bool native = direct && !(options->aio && !strcmp(options->aio, "threads"));
	const char *argv[10];
	const struct bm_spawn spawn = {.argv = (char *const *)argv,
				       .fds = &listener,
				       .n_fds = 1,
				       .fd_names = "nbd",
				       .lifeline = h->lifeline};
	int n = 0, r;

	snprintf(format_option, sizeof(format_option), "--format=%s", format);
	snprintf(shared, sizeof(shared), "--shared=%d", NBD_MAX_CONNS);
	argv[n++] = "qemu-nbd";
	argv[n++] = format_option;
	argv[n++] = shared;
	argv[n++] = direct ? "--cache=none" : "--cache=writeback";
	argv[n++] = native ? "--aio=native" : "--aio=threads";
	argv[n++] = "--discard=unmap";
	argv[n++] = "--detect-zeroes=off"; /* the mirror looks for zeros itself */
	if (options->read_only)
		argv[n++] = "--read-only";
	argv[n++] = path;
	argv[n] = NULL;
	h->words = bm_words_new();
	if (h->words < 0)
		return h->words;
	r = bm_spawn_helper(&spawn, h->words);
	if (r < 0)
		return r;
	h->pid = r;
	h->pidfd = pidfd_open(h->pid, 0);
	return h->pidfd < 0 ? -errno : 0;
}

static int connect_to(struct helper *h, int way, const struct bm_open_options *options,
		      struct bm_error *error)
{
	struct bm_open_options nbd = *options;
	char address[80];
	int r;

	/* The image's lock is the fence, and QEMU knows no sessions. */
	nbd.fence = false;
	nbd.session = NULL;
	snprintf(address, sizeof(address), "nbd+unix:///?socket=/proc/self/fd/%d", way);
	r = bm_nbd_open_at(h->name, address, START_LIMIT, &nbd, &h->inner, error);
	/* From here on it may have something in memory that the image needs. */
	if (!r && fcntl(h->lifeline[0], F_SETSIG, SIGTERM) < 0)
		r = bm_fail_errno(error, errno, "cannot open %s", h->name);
	return r;
}

static int start_and_connect(struct helper *h, const char *format, const char *path, bool direct,
			     const struct bm_open_options *options, struct bm_error *error)
{
	bm_close int listener = -1, way = -1;
	char why[WORDS + 100];
	int r = make_socket(&listener, &way);

	if (!r)
		r = start(h, format, path, direct, options, listener);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot open %s: its helper", h->name);
	close(bm_steal_fd(listener)); /* it alone has it: when it ends, so does the waiting */
	r = connect_to(h, way, options, error);
	if (!r || !bm_process_ends(h->pidfd, LAST_WORDS, options->interrupted, options->arg))
		return r;
	reap(h, why, sizeof(why));
	return bm_fail(error, strstr(why, " lock") ? BM_E_LOCKED : BM_E_UNREACHABLE,
		       "cannot open %s: its helper, qemu-nbd, ended: %s", h->name, why);
}

static bool is_leaving(const struct stat *st)
{
	bool found = false;

	pthread_mutex_lock(&lock);
	bm_list_each(at, &leaving) {
		const struct helper *h = bm_container(at, struct helper, link);

		found |= h->device == st->st_dev && h->inode == st->st_ino;
	}
	pthread_mutex_unlock(&lock);
	return found;
}

/* The image, open as its helper will open it. */
static int open_file(const char *path, const struct bm_open_options *options, bool *direct,
		     struct stat *st, struct bm_error *error)
{
	int flags = (options->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC, fd;

	if (stat(path, st) < 0)
		return bm_fail_errno(error, errno, "cannot open %s", path);
	if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode))
		return bm_fail(error, BM_E_NOT_IMAGE, "%s is neither a file nor a block device",
			       path);
	fd = options->buffered ? -1 : open(path, flags | O_DIRECT);
	*direct = fd >= 0;
	if (fd < 0 && (options->buffered || errno == EINVAL))
		fd = open(path, flags);
	return fd < 0 ? bm_fail_errno(error, errno, "cannot open %s", path) : fd;
}

static const struct bm_dev_ops helper_ops;

static struct helper *helper_new(const char *name)
{
	struct helper *h = calloc(1, sizeof(*h));

	if (!h)
		return NULL;
	h->dev.ops = &helper_ops;
	h->pidfd = h->lifeline[0] = h->lifeline[1] = h->words = -1;
	h->name = strdup(name);
	if (!h->name) {
		helper_free(h);
		return NULL;
	}
	return h;
}

int bm_helper_open(const struct bm_uri *uri, const struct bm_open_options *options,
		   struct bm_dev **dev, struct bm_error *error)
{
	const char *format = bm_uri_format(uri->text);
	bm_free char *path = realpath(uri->rest, NULL);
	struct helper *h = NULL;
	bm_close int fd = -1;
	struct stat st;
	bool direct = false;
	char why[WORDS];
	int r;

	if (!path)
		return bm_fail_errno(error, errno, "cannot open %s", uri->rest);
	fd = r = open_file(path, options, &direct, &st, error);
	if (r < 0)
		return r;
	while (is_leaving(&st) && !bm_wait_a_while(options, BM_IMAGE_RETRY))
		;
	r = bm_image_lock_for(fd, path, options, error);
	if (!r)
		r = bm_format_check(format, path, options, error);
	close(bm_steal_fd(fd)); /* and with it the lock */
	if (r < 0)
		return r;
	h = helper_new(uri->text);
	if (!h)
		return bm_fail_errno(error, ENOMEM, "cannot open %s", uri->text);
	h->device = st.st_dev;
	h->inode = st.st_ino;
	r = start_and_connect(h, format, path, direct, options, error);
	if (r < 0)
		goto fail;
	/*
	 * QEMU's quick zero fails when the last piece of it cannot be quick, and has changed those
	 * before: it is not asked for one.
	 */
	bm_container(h->inner, struct nbd, dev)->can_fast_zero = false;
	h->dev.geometry = h->inner->geometry;
	if (!bm_format_has_zeros(format)) {
		h->dev.geometry.flags &= ~BM_DEV_FAST_ZERO;
		h->dev.geometry.max_zero = h->dev.geometry.max_transfer;
	}
	h->dev.geometry.flags |= BM_DEV_FENCED;
	*dev = &h->dev;
	return 0;
fail:
	bm_dev_close(h->inner);
	if (h->pid)
		end_helper(h, why, sizeof(why));
	helper_free(h);
	return r;
}

/* In the loop's thread */

/* The session is lost at the same time, and tells what is above. */
static void ended(struct bm_watch *watch, uint32_t events)
{
	struct helper *h = bm_container(watch, struct helper, watch);
	char why[WORDS + 100];

	(void)events;
	bm_watch_set(h->dev.loop, &h->watch, h->pidfd, 0);
	reap(h, why, sizeof(why));
	tell(h, why);
}

static void helper_start(struct bm_dev *dev)
{
	struct helper *h = bm_container(dev, struct helper, dev);

	bm_dev_start(h->inner, dev->loop);
	h->watch.run = ended;
	if (bm_watch_set(dev->loop, &h->watch, h->pidfd, EPOLLIN) < 0)
		bm_log(BM_LOG_WARN, "%s: its helper cannot be watched", h->name);
}

static void helper_submit(struct bm_dev *dev, struct bm_request *rq)
{
	bm_submit(bm_container(dev, struct helper, dev)->inner, rq);
}

static void helper_cancel(struct bm_dev *dev)
{
	bm_dev_cancel(bm_container(dev, struct helper, dev)->inner);
}

/* In a thread of its own. */
static void *see_off(void *arg)
{
	struct helper *h = arg;
	char why[WORDS + 100];

	if (!end_helper(h, why, sizeof(why)))
		tell(h, why);
	pthread_mutex_lock(&lock);
	bm_list_remove(&h->link);
	pthread_cond_broadcast(&gone);
	pthread_mutex_unlock(&lock);
	helper_free(h);
	return NULL;
}

static void helper_close(struct bm_dev *dev)
{
	struct helper *h = bm_container(dev, struct helper, dev);
	sigset_t all, old;
	pthread_t thread;
	int r;

	bm_dev_close(h->inner);
	if (h->watch.events)
		bm_watch_set(dev->loop, &h->watch, h->pidfd, 0);
	if (!h->pid) {
		helper_free(h);
		return;
	}
	pthread_mutex_lock(&lock);
	bm_list_append(&leaving, &h->link);
	pthread_mutex_unlock(&lock);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&thread, NULL, see_off, h);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!r)
		pthread_detach(thread);
	else /* slow, but right */
		see_off(h);
}

static const struct bm_dev_ops helper_ops = {
	.name = "helper",
	.start = helper_start,
	.submit = helper_submit,
	.cancel = helper_cancel,
	.close = helper_close,
};

void bm_dev_settle(void)
{
	pthread_mutex_lock(&lock);
	while (!bm_list_empty(&leaving))
		pthread_cond_wait(&gone, &lock);
	pthread_mutex_unlock(&lock);
}
