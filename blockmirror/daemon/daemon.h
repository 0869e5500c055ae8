/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Program blockmirrord, shared by the files of this folder. It starts the disks' processes and
 * starts them again; no guest's byte passes through it. What it knows it can find out anew: which
 * disks are to be served stands in STATE/serve, where they are in their records, and the processes
 * that run hand their sockets over. One thread, one loop; what may block is done by one worker.
 *
 *   main.c       arguments, signals, readiness
 *   registry.c   which disks are to be served: small files
 *   supervise.c  the life of a disk's process, as states
 *   start.c      what it is started with
 *   adopt.c      processes that run already
 *   resume.c     what is done when a disk is served again
 *   ask.c        one call to a disk's process
 *   control.c    the control socket
 *   peer*.c      other hosts (peer.h)
 *   machine.c    machines, and move.c their moves (machine.h)
 */
#ifndef BM_DAEMON_DAEMON_H
#define BM_DAEMON_DAEMON_H

#include <jansson.h>

#include "blockmirror/base/list.h"
#include "blockmirror/base/rpc.h"
#include "blockmirror/base/unix_socket.h"
#include "blockmirror/base/worker.h"

struct served;
struct peers;
struct machines;
struct moves;

struct daemon {
	struct bm_loop *loop;
	char *run, *state;              /* absolute, without links */
	char *sockets, *registry;       /* RUN/disks, STATE/serve */
	const char *hooks, *hook_limit; /* options for the disks' processes; NULL: not given */
	int lock;                       /* on the registry */
	const char *resume_with;        /* a program; "none"; NULL: ours */
	struct bm_rpc *rpc;
	struct bm_workers *writer; /* one thread: the registry's files, in order */
	struct bm_watch adopt;     /* fd -1: none */
	struct bm_list disks;      /* struct served, by name */
	struct peers *peers;
	struct machines *machines;
	struct moves *moves;
	const char *machine_hooks; /* folder of hooks, for machines that name none */
};

/*
 * registry.c: a file NAME.json for each disk that is to be served after a boot. All block. limits:
 * options of blockmirror-disk and their values, as strings; NULL: none. received: of a standby,
 * {peer: whose it is, disk: its identity, port: that its mirror comes to, or shared: true, and
 * nothing comes, since we reach its storage}; NULL: the disk is ours.
 */
bool registry_limits_good(const json_t *limits);
int registry_add(const char *folder, const char *name, json_t *limits, json_t *received,
		 struct bm_error *error);
int registry_remove(const char *folder, const char *name, struct bm_error *error);
/* Calls found() for each, sorted. What is damaged is told in the log, and left alone. */
int registry_read(const char *folder,
		  void (*found)(void *arg, const char *name, json_t *limits, json_t *received),
		  void *arg, struct bm_error *error);
/* Of received. */
const char *registry_peer(const json_t *received);
const char *registry_disk(const json_t *received);
unsigned registry_port(const json_t *received);
bool registry_shared(const json_t *received);

/* ask.c: a call without parameters to a disk's process. One at a time. */
struct ask {
	struct bm_loop *loop;
	struct bm_watch watch; /* fd -1: no call is out */
	char line[1024];
	size_t used;
	void (*done)(struct ask *ask, const struct bm_error *error); /* NULL: all is well */
};
void ask_init(struct ask *ask, struct bm_loop *loop);
/* 0, and done() will be called; or -errno: -ENOENT or -ECONNREFUSED when nobody listens. */
int ask_begin(struct ask *ask, const char *path, const char *method,
	      void (*done)(struct ask *ask, const struct bm_error *error));
/* The process has ended: an answer that it has left is delivered now, or else that it is gone. */
void ask_finish(struct ask *ask);
void ask_cancel(struct ask *ask);

enum served_state {
	SERVED_STOPPED,  /* until serve, or a boot */
	SERVED_ADOPTING, /* a process runs; its descriptors were asked for */
	SERVED_STARTING,
	SERVED_RUNNING,
	SERVED_WAITING, /* until the timer ends */
};

/* What was said with "serve", for the one start that it is about. */
struct first_start {
	char *image;
	uint64_t create;
	bool force, flatten;
	/* a standby: */
	bool standby;
	uint64_t size;
	bool made;      /* the image is new, and goes when nothing comes of it */
	json_t *answer; /* to the call, instead of the usual one */
};

struct served {
	struct daemon *daemon;
	struct bm_list link;
	char *name, *log, *stopped; /* path of the file that says so: it goes with a boot */
	enum served_state state;
	bool saved;                           /* is in the registry */
	bool wanted;                          /* started again when it ends */
	bool stopping;                        /* the process has agreed to end */
	struct bm_unix_listener nbd, control; /* fd -1: not held */
	pid_t pid;                            /* 0: none */
	struct bm_watch process;              /* its pidfd; fd -1 */
	struct bm_watch output;               /* says "ready URI"; fd -1 */
	pid_t successor_pid;                  /* of one that is to take its place (upgrade) */
	struct bm_watch successor;            /* its pidfd; fd -1: there is none */
	struct bm_watch resumer; /* of a program that has machines go on; fd -1: there is none */
	bool resumes_again;      /* when that one has ended */
	char line[512];
	size_t line_used;
	char *uri;                /* that it is served at, if it was us who started it */
	uint64_t since, ended;    /* when it became ready; when the last one ended, or 0 */
	uint64_t back;            /* ns from the last end to being ready again; 0: there was none */
	unsigned restarts, quick; /* all; the last ones, without a life worth the name */
	struct bm_error error;    /* why the last one ended */
	struct bm_timer retry;
	struct ask ask;
	struct first_start first;
	json_t *limits, *received;        /* as the registry has them */
	struct bm_rpc_call *discard_call; /* it is a standby that is not wanted any more */
	struct bm_rpc_call *serve_call, *stop_call; /* wait for an answer; NULL */
	struct bm_work work;                        /* on the registry */
	bool working, forgetting, erasing;
	bool keeping; /* erasing it, its image stays */
	struct bm_error work_error;
};

/* supervise.c */
struct served *served_find(struct daemon *d, const char *name);
struct served *served_new(struct daemon *d, const char *name); /* SERVED_STOPPED; NULL: no memory */
void served_free(struct served *s);
/* Adopts the process that runs, or else starts one. */
void served_begin(struct served *s);
/* Has it in the registry, or no longer; a serve_call is answered then. */
void served_save(struct served *s);
void served_forget(struct served *s, struct bm_rpc_call *call);
/* No process runs, and none shall. */
void served_stopped(struct served *s);
/* The process that was asked for its descriptors has sent them; they are taken over. */
void served_adopted(struct served *s, pid_t pid, int process, int nbd, int control);
int served_watch_process(struct served *s, int fd);
void served_close_watch(struct served *s, struct bm_watch *watch);
/* A process does not do as asked: again later. */
void served_later(struct served *s);
uint64_t served_delay(unsigned quick);
const char *served_state_name(const struct served *s);

/* start.c: its pid; or -errno, and s->error says why. */
int served_spawn(struct served *s, int *output);

/* receive.c: of a standby that is not wanted any more, the image, unless keeping, and the record.
 * Blocks. */
int receive_erase(const struct served *s, struct bm_error *error);

/* adopt.c */
int adopt_listen(struct daemon *d, struct bm_error *error);
void adopt_close(struct daemon *d);
/* Whether a process runs that was asked for its descriptors. */
bool adopt_ask(struct served *s);
/* The process has ended: whether another one has its place. */
bool adopt_succeed(struct served *s);
/* Processes whose sockets are in RUN though the registry does not know them. */
void adopt_strangers(struct daemon *d);

/* resume.c: its process is not the first one; a machine may wait for it. */
void resume_begin(struct served *s);

/* control.c */
int control_listen(struct daemon *d, struct bm_error *error);
void control_tell(struct served *s); /* those who listen to events */
json_t *control_report(const struct served *s);
/* Answers call with "WHAT NAME TEXT". */
void control_refuse(struct bm_rpc_call *call, enum bm_code code, const char *what, const char *name,
		    const char *text);

#endif
