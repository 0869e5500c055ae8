/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Moves of machines: a folder STATE/moves/ID has the plan of one, and its log (docs/machine.md). As
 * long as the folder is there a process blockmirror-move works on it, on the host that the machine
 * comes from, and on the one that it goes to; it removes the folder when all is over. One that has
 * died is followed by another one, which reads the log.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/move_log.h"
#include "blockmirror/base/spawn.h"
#include "blockmirror/base/tls_client.h"
#include "blockmirror/daemon/machine.h"

enum { FORMAT = 1, LARGEST = 1 << 20 };
#define STEP     200000000ull   /* ns between looks */
#define LINGER   10000000000ull /* ns that there are looks though nothing is there */
#define PATIENCE 60000000000ull

struct move {
	struct bm_list link;
	char *folder, *machine;
	json_t *request; /* that it came of; NULL: of none */
	unsigned port;   /* that the other host comes to; 0: none does */
	pid_t pid;       /* 0: none that we have started */
	bool seen;
};

struct moves {
	char *folder;
	struct bm_list all;
	struct bm_timer timer;
	uint64_t until;
	struct daemon *daemon;
};

static void free_move(struct move *m)
{
	bm_list_remove(&m->link);
	json_decref(m->request);
	free(m->folder);
	free(m->machine);
	free(m);
}

/* It is over when its plan is gone, which whoever follows it sees sooner than we look again. */
static bool goes_on(const struct move *m)
{
	bm_free char *plan = NULL;

	if (asprintf(&plan, "%s/plan", m->folder) < 0)
		plan = bm_need(NULL);
	return !access(plan, F_OK);
}

static const struct move *move_of(const struct daemon *d, const char *machine)
{
	bm_list_each(node, &d->moves->all) {
		const struct move *m = bm_container(node, struct move, link);

		if (!strcmp(m->machine, machine) && goes_on(m))
			return m;
	}
	return NULL;
}

const char *moves_folder_of(const struct daemon *d, const char *machine)
{
	const struct move *m = move_of(d, machine);

	return m ? m->folder : NULL;
}

const json_t *moves_request_of(const struct daemon *d, const char *machine)
{
	const struct move *m = move_of(d, machine);

	return m ? m->request : NULL;
}

/* Processes */

static void start(struct daemon *d, struct move *m)
{
	bm_free char *log = NULL;
	struct bm_error error = {0};
	bm_close int door = m->port ? peer_listen_data(d->peers, &m->port, &error) : -1;
	char *argv[] = {(char *)BM_MOVE_PROGRAM,
			(char *)"--move",
			m->folder,
			(char *)"--run-dir",
			d->run,
			(char *)"--state-dir",
			d->state,
			d->hook_limit ? (char *)"--hook-timeout" : NULL,
			(char *)d->hook_limit,
			NULL};
	const struct bm_spawn spawn = {.argv = argv,
				       .log = log,
				       .append = true,
				       .fds = &door,
				       .n_fds = door >= 0,
				       .fd_names = "door"};
	struct bm_spawn with_log = spawn;
	int pid;

	if (m->port && door < 0) {
		bm_log(BM_LOG_ERROR, "move %s: %s", m->folder, error.text);
		return;
	}
	if (asprintf(&log, "%s/moves/%s.log", d->run, strrchr(m->folder, '/') + 1) < 0)
		log = bm_need(NULL);
	with_log.log = log;
	pid = bm_spawn_disk(&with_log);
	if (pid < 0)
		bm_log(BM_LOG_ERROR, "cannot start " BM_MOVE_PROGRAM ": %s", strerror(-pid));
	else
		m->pid = pid;
}

static void look_after(struct daemon *d, struct move *m)
{
	bm_free char *log = NULL;
	int status;

	if (m->pid && waitpid(m->pid, &status, WNOHANG) == m->pid) {
		if (WIFSIGNALED(status))
			bm_log(BM_LOG_ERROR, "%s: its process was killed by signal %d", m->folder,
			       WTERMSIG(status));
		m->pid = 0;
	}
	if (m->pid || !m->seen || asprintf(&log, "%s/log", m->folder) < 0)
		return;
	if (!bm_move_log_busy(log)) /* not one that a daemon before us has started */
		start(d, m);
}

/* Folders */

static struct move *find(struct moves *all, const char *folder)
{
	bm_list_each(node, &all->all) {
		struct move *m = bm_container(node, struct move, link);

		if (!strcmp(m->folder, folder))
			return m;
	}
	return NULL;
}

static void found(struct moves *all, const char *id)
{
	bm_free char *folder = NULL, *path = NULL, *text = NULL;
	const char *machine;
	struct move *m;
	json_t *plan;
	int port = 0;

	if (*id == '.' || asprintf(&folder, "%s/%s", all->folder, id) < 0 ||
	    asprintf(&path, "%s/plan", folder) < 0)
		return;
	m = find(all, folder);
	if (!m && !bm_read_text(path, LARGEST, &text)) {
		plan = json_loads(text, 0, NULL);
		if (!json_unpack(plan, "{s:s s?i}", "machine", &machine, "port", &port)) {
			m = bm_need(calloc(1, sizeof(*m)));
			m->folder = bm_need(strdup(folder));
			m->machine = bm_need(strdup(machine));
			m->port = (unsigned)port;
			m->request = json_incref(json_object_get(plan, "request"));
			bm_list_append(&all->all, &m->link);
		}
		json_decref(plan);
	}
	if (m)
		m->seen = !access(path, F_OK);
}

static void look(struct bm_timer *timer)
{
	struct moves *all = bm_container(timer, struct moves, timer);
	struct daemon *d = all->daemon;
	struct dirent **entries = NULL;
	int n = scandir(all->folder, &entries, NULL, alphasort);
	struct bm_list *node = all->all.next;

	bm_list_each(each, &all->all) {
		bm_container(each, struct move, link)->seen = false;
	}
	for (int i = 0; i < n; i++) {
		found(all, entries[i]->d_name);
		free(entries[i]);
	}
	free(entries);
	while (node != &all->all) {
		struct move *m = bm_container(node, struct move, link);

		node = node->next;
		look_after(d, m);
		if (!m->seen && !m->pid)
			free_move(m);
	}
	if (all->all.next != &all->all || bm_loop_now(d->loop) < all->until)
		(void)bm_timer_set(d->loop, &all->timer, bm_loop_now(d->loop) + STEP);
}

void moves_take(struct daemon *d, const char *id)
{
	found(d->moves, id);
	moves_look(d);
}

void moves_look(struct daemon *d)
{
	d->moves->until = bm_loop_now(d->loop) + LINGER;
	(void)bm_timer_set(d->loop, &d->moves->timer, bm_loop_now(d->loop));
}

int moves_open(struct daemon *d, struct bm_error *error)
{
	struct moves *all = d->moves = bm_need(calloc(1, sizeof(*all)));
	bm_free char *run = NULL;
	int r;

	bm_list_init(&all->all);
	all->daemon = d;
	all->timer.run = look;
	if (asprintf(&all->folder, "%s/moves", d->state) < 0 ||
	    asprintf(&run, "%s/moves", d->run) < 0)
		return bm_fail_errno(error, ENOMEM, "moves");
	r = bm_make_folders(all->folder);
	if (!r)
		r = bm_make_folders(run);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot create %s", all->folder);
	moves_look(d);
	return 0;
}

/* The processes go on. */
void moves_close(struct daemon *d)
{
	if (!d->moves)
		return;
	bm_timer_clear(d->loop, &d->moves->timer);
	while (d->moves->all.next != &d->moves->all)
		free_move(bm_container(d->moves->all.next, struct move, link));
	free(d->moves->folder);
	free(d->moves);
	d->moves = NULL;
}

int moves_make(const struct daemon *d, const char *id, const json_t *plan, struct bm_error *error)
{
	bm_free char *folder = NULL, *path = NULL, *beside = NULL,
		     *text = json_dumps(plan, JSON_COMPACT);
	int r;

	if (!text || asprintf(&folder, "%s/%s", d->moves->folder, id) < 0 ||
	    asprintf(&path, "%s/plan", folder) < 0 || asprintf(&beside, "%s.new", path) < 0)
		return bm_fail_errno(error, ENOMEM, "move %s", id);
	r = bm_make_folders(folder);
	if (!r)
		r = bm_sync_folder_of(folder);
	if (!r)
		r = bm_write_durably(beside, text, strlen(text));
	if (!r)
		r = bm_rename_durably(beside, path);
	return r < 0 ? bm_fail_errno(error, r, "cannot write %s", path) : 0;
}

/* Methods of the control socket */

/* By what a process of ours proves to the other host that it is from here. */
static json_t *trust_of(const struct peer_errand *e)
{
	bm_free char *key = peer_key_path(e->peers, e->peer->name);

	if (e->peer->key)
		return json_pack("{s:s}", "key_file", key);
	return json_pack("{s:s s:s}", "certificates", e->peers->links, "identity",
			 e->peer->identity);
}

/* The other host has a process for the move from then on, which waits at target. */
static int offer_move(struct peer_errand *e)
{
	const char *from = json_string_value(json_object_get(e->params, "from"));
	bm_free char *host = NULL, *address = NULL;
	struct bm_client *client;
	json_t *hello = NULL;
	json_int_t port = 0;
	int r = peer_connect_from(e->peers, e->peer, from, &client, &hello, &e->error);

	if (r < 0)
		return r;
	host = peer_data_host_from(e->peer, from, hello, &e->error);
	json_decref(hello);
	r = host ? 0 : -EINVAL;
	if (!r && from) /* its disks would say so later */
		r = peer_covers(e->peer, client, host, &e->error);
	if (r < 0) {
		bm_client_close(client);
		return r;
	}
	bm_client_set_timeout(client, PATIENCE);
	r = bm_client_call(client, "move.receive", json_incref(e->params), &e->result, &e->error);
	bm_client_close(client);
	if (r < 0)
		return r;
	if (json_unpack(e->result, "{s:I}", "port", &port) ||
	    asprintf(&address, strchr(host, ':') ? "[%s]:%lld" : "%s:%lld", host, (long long)port) <
		    0)
		return bm_fail(&e->error, BM_E_IO, "host %s answers with something else",
			       e->peer->name);
	json_object_set_new(e->result, "address", json_string(address));
	json_object_set_new(e->result, "trust", trust_of(e));
	return 0;
}

static int ask_state(struct peer_errand *e)
{
	return peer_ask(e->peers, e->peer, "move.state", json_incref(e->params), PATIENCE,
			&e->result, &e->error);
}

static void ask_peer(struct daemon *d, struct bm_rpc_call *call, json_t *params,
		     int (*run)(struct peer_errand *e))
{
	const struct peer *peer = peer_wanted(d->peers, call, params, "peer");

	if (peer)
		peer_errand_begin(d->peers, call, peer, json_incref(params), run, NULL,
				  ERRAND_OURS);
}

void method_remote_move(void *arg, struct bm_rpc_call *call, json_t *params)
{
	ask_peer(arg, call, params, offer_move);
}

void method_remote_move_state(void *arg, struct bm_rpc_call *call, json_t *params)
{
	ask_peer(arg, call, params, ask_state);
}

/* Methods of the port for hosts */

/* In a worker. The plan has the rest. */
static int receive(struct peer_errand *e)
{
	const char *id = json_string_value(json_object_get(e->params, "move")),
		   *hooks = json_string_value(json_object_get(e->params, "hooks"));
	bm_free char *hook = NULL;
	unsigned port = 0;
	int fd, r;

	if (asprintf(&hook, "%s/start-target", hooks) < 0) {
		hook = NULL;
		return bm_fail_errno(&e->error, ENOMEM, "move %s", id);
	}
	if (access(hook, X_OK) < 0)
		return bm_fail(&e->error, BM_E_ACCESS,
			       "host %s does not take machines: it has no hook %s", e->peers->name,
			       hook);
	fd = peer_listen_data(e->peers, &port, &e->error);
	if (fd < 0)
		return fd;
	close(fd); /* its process listens there, and the next one again */
	json_object_set_new(e->params, "port", json_integer(port));
	r = moves_make(e->peers->daemon, id, e->params, &e->error);
	if (!r)
		e->result = json_pack("{s:i}", "port", (int)port);
	return r;
}

static bool may_receive(struct daemon *d, struct bm_rpc_call *call, const struct peer *peer,
			const char *machine, const char *id)
{
	const json_t *known = machine ? machine_find(d, machine) : NULL;
	struct bm_error error = {0};

	if (!json_array_size(peer->receive) && !json_array_size(peer->shared))
		bm_fail(&error, BM_E_ACCESS,
			"host %s lets host %s put no disks anywhere: \"blockmirror peer allow %s "
			"--receive FOLDER\"",
			d->peers->name, peer->name, peer->name);
	else if (!machine || !id || bm_disk_name_check(machine, NULL) < 0 ||
		 bm_disk_name_check(id, NULL) < 0)
		bm_fail(&error, BM_E_USAGE, "machine and move (names) are wanted");
	else if (moves_folder_of(d, machine))
		bm_fail(&error, BM_E_BUSY, "host %s is busy with a move of machine %s already",
			d->peers->name, machine);
	else if (known && !json_object_get(known, "away"))
		bm_fail(&error, BM_E_EXISTS, "host %s has a machine %s already", d->peers->name,
			machine);
	if (error.code)
		bm_rpc_fail(call, &error);
	return !error.code;
}

void method_move_receive(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct peers *p = arg;
	const struct peer *peer = peer_admit(p, call, true);
	const char *machine = json_string_value(json_object_get(params, "machine")),
		   *id = json_string_value(json_object_get(params, "move"));
	json_t *plan;

	if (!peer || !may_receive(p->daemon, call, peer, machine, id))
		return;
	plan = json_pack("{s:i s:s s:s s:s s:s s:s s:O s:O s:s s:s* s:O*}", "format", FORMAT,
			 "side", "target", "move", id, "machine", machine, "peer", peer->name,
			 "hooks", machine_hooks(p->daemon, machine), "disks",
			 json_object_get(params, "disks"), "description",
			 json_object_get(params, "description"), "user",
			 peer->identity ? peer->identity : peer->name, "links",
			 peer->identity ? p->links : NULL, "receive", peer->receive);
	if (!plan) {
		control_refuse(call, BM_E_USAGE, "machine", machine, "has no disks or description");
		return;
	}
	if (!peer->identity)
		json_object_set_new(plan, "keys", json_string(p->keys));
	peer_errand_begin(p, call, peer, plan, receive, NULL, ERRAND_THEIRS);
	moves_look(p->daemon);
}

static int tell_state(struct peer_errand *e)
{
	enum bm_move_state state = BM_MOVE_NONE;
	bm_free char *log = NULL;
	int r;

	if (asprintf(&log, "%s/%s/log", e->peers->daemon->moves->folder,
		     json_string_value(json_object_get(e->params, "move"))) < 0) {
		log = NULL;
		return bm_fail_errno(&e->error, ENOMEM, "move");
	}
	r = bm_move_log_read(log, &state);
	if (r < 0 && r != -ENOENT)
		return bm_fail_errno(&e->error, r, "cannot read %s", log);
	e->result =
		json_pack("{s:b s:s}", "known", r != -ENOENT, "state", bm_move_state_name(state));
	return 0;
}

void method_move_state(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct peers *p = arg;
	const struct peer *peer = peer_admit(p, call, true);
	const char *id = json_string_value(json_object_get(params, "move"));

	if (!peer)
		return;
	if (!id || bm_disk_name_check(id, NULL) < 0) {
		control_refuse(call, BM_E_USAGE, "move", "(none)", "is no name of a move");
		return;
	}
	peer_errand_begin(p, call, peer, json_incref(params), tell_state, NULL, ERRAND_THEIRS);
}
