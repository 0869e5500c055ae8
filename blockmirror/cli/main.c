/* SPDX-License-Identifier: BSD-3-Clause */
/* Program blockmirror: finds the command and runs it. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "blockmirror/base/config.h"
#include "blockmirror/base/dirs.h"
#include "blockmirror/cli/cli.h"

/* Of drain and balance. */
#define DRAIN_HELP                                                                              \
	"  --dry-run             print what would be done, and what stays, and why\n"           \
	"  --reserve SIZE        what stays free in each store (default: a twentieth)\n"        \
	"  --deny KIND           nothing goes to file systems of that kind (default: tmpfs, "   \
	"ramfs)\n"                                                                              \
	"  --parallel N          images that move at a time (default 2)\n"                      \
	"  --rate BYTES          of all that move, together, in a second\n"                     \
	"  --guest-latency       as for relocate\n"                                             \
	"  --window FROM-TO      times of the day (22:00-06:00) between which images begin to " \
	"move\n"                                                                                \
	"  --include PATTERN     files with such names are raw images, whatever they look like\n"

const struct command commands[] = {
	{"serve",
	 "NAME [IMAGE] [--create SIZE] [--force] [--flatten] [--max-connections N] [--max-data "
	 "SIZE] "
	 "[--reconnect-timeout TIME]",
	 "serve an image as a disk over NBD",
	 "IMAGE is a path or a URI (file: nbd: nbd+unix: iscsi: qcow2: vmdk: vhdx: vpc:). "
	 "Once "
	 "the\n"
	 "disk has a record it may be left out: the record says where the disk is.\n"
	 "\n"
	 "  --create SIZE  make the image, a file, of that size\n"
	 "  --force        serve IMAGE though it is an old copy, left behind by a move, or an\n"
	 "                 incomplete one\n"
	 "  --flatten      serve IMAGE though it is a linked clone, with what shows through it\n"
	 "  --max-connections N  clients at a time (default 100); more wait\n"
	 "  --max-data SIZE      memory for the data of a client's requests (default 16M)\n"
	 "  --reconnect-timeout TIME  how long the guest waits when the connection to its storage\n"
	 "                       is lost (s, m, h; default: until it is back), before it gets\n"
	 "                       errors\n",
	 cmd_serve},
	{"list", "", "list the disks that are served", NULL, cmd_list},
	{"show", "NAME [--xml]", "show a disk: where it is, its job, its clients",
	 "  --xml  as a disk of a libvirt domain\n", cmd_show},
	{"stop", "NAME", "stop serving a disk",
	 "Refused while a client is connected or a job runs. With blockmirrord(8) it lasts until\n"
	 "\"serve\", or the host's next boot.\n",
	 cmd_stop},
	{"forget", "NAME", "no longer serve a disk when the host boots",
	 "The disk is one of blockmirrord(8), and stopped. Its image and its record stay.\n",
	 cmd_forget},
	{"upgrade", "NAME", "serve a disk by the program that is installed now",
	 "A new process starts, and takes everything over from the one that serves the disk:\n"
	 "clients stay connected, a job goes on. When it is not fit the old one stays, and this\n"
	 "command says why.\n",
	 cmd_upgrade},
	{"relocate",
	 "NAME|--qmp SOCKET --drive NODE|DEVICE TARGET [--rate BYTES] [--guest-latency MS|off] "
	 "[--switch auto|manual] [--overwrite] "
	 "[--verify] [--accept-repair] [--undo-window TIME] [--delete-source] [--detach] "
	 "[--serve-there] "
	 "[--target-deadline TIME] [--on-target-loss wait|pause|TIME] "
	 "[--on-source-error stop|skip]",
	 "move a running disk to other storage",
	 "TARGET is a directory (the image is created in it, under its name), a path that does "
	 "not\n"
	 "exist (it is created), or, with --overwrite, anything that does: a file, a block "
	 "device,\n"
	 "an nbd: or iscsi: URI. qcow2:TARGET and others: a directory or path, in that format. "
	 "The\n"
	 "source is kept and marked as retired.\n"
	 "\n"
	 "  --rate BYTES        copy at most that many bytes a second (k M G; 0: no limit)\n"
	 "  --guest-latency T   keep the guest's p99 latency below T (ms, or with us, ms, s);\n"
	 "                      default: at most twice its own before; off: as quick as can be\n"
	 "  --switch manual     stay in sync until \"switch\"\n"
	 "  --overwrite         give up what TARGET holds\n"
	 "  --verify            compare both copies whole, while the guest writes, before the "
	 "switch;\n"
	 "                      where they differ they are copied again, and the job fails\n"
	 "  --accept-repair     the same, and it goes on\n"
	 "  --serve-there       with bm://HOST/PATH: and then HOST serves the disk (hand-over)\n"
	 "  --undo-window TIME  mirror the other way round that long (s, m, h) after the switch:\n"
	 "                      \"undo\" takes the disk back, \"release\" ends the window\n"
	 "  --delete-source     remove the source, a file, after the switch and the window\n"
	 "  --detach            print the job's id and do not wait\n"
	 "  --target-deadline TIME  a write waits that long for a target that hangs (default "
	 "2s);\n"
	 "                      then the guest goes on without it\n"
	 "  --on-target-loss wait|pause|TIME\n"
	 "                      when the target is away: try it again for as long as it takes "
	 "(the\n"
	 "                      default); pause until \"job resume\"; give up when it was away for "
	 "TIME\n"
	 "  --on-source-error stop|skip\n"
	 "                      when the source cannot be read somewhere: end the job (the "
	 "default); or\n"
	 "                      copy all else, say where, and do not switch over until it can be "
	 "read, or\n"
	 "                      the guest has written it anew\n"
	 "\n"
	 "  --qmp SOCKET, --drive NODE|DEVICE\n"
	 "                      a disk of a running QEMU (6.1 or later), on a plain file or block\n"
	 "                      device: it is slipped out of under its guest, moved, and QEMU has "
	 "it\n"
	 "                      again, at its new place; nothing is left behind\n"
	 "\n"
	 "Ctrl-C leaves the job running; with --qmp it cancels it, and QEMU has the disk as "
	 "before.\n",
	 cmd_relocate},
	{"adopt", "--qmp SOCKET --drive NODE|DEVICE [--name NAME]",
	 "serve a disk of a running QEMU, from under its guest",
	 "The guest goes on. From then on the disk is one of ours: relocate, undo, show.\n"
	 "\n"
	 "  --qmp SOCKET   QEMU's monitor (-qmp unix:SOCKET,server=on,wait=off), not in use by "
	 "others\n"
	 "  --drive NODE|DEVICE  a device's id, a -drive's, or a node's name\n"
	 "  --name NAME    of the disk (default: one that is made up, and printed)\n",
	 cmd_adopt},
	{"hand-back", "NAME | --qmp SOCKET --drive NODE|DEVICE",
	 "QEMU gets an adopted disk back, where it is now",
	 "Its guest goes on, the disk's process ends, nothing is left behind. It completes, or\n"
	 "undoes, what another command has begun and not ended.\n",
	 cmd_hand_back},
	{"switch", "NAME", "switch over a disk that waits in sync", NULL, cmd_switch},
	{"undo", "NAME", "take a disk back to where it was before it moved",
	 "While the undo window of the move is open (relocate --undo-window). The way back is a\n"
	 "switchover like the one before; nothing that was written since is lost.\n",
	 cmd_undo},
	{"release", "NAME", "end the undo window of a move: the disk stays where it is", NULL,
	 cmd_release},
	{"copy", "NAME|IMAGE TARGET [OPTION]...",
	 "copy a disk that is served, as of one instant, or an image",
	 "NAME is a disk that is served: its guest goes on, and the copy is what the disk was at "
	 "one\n"
	 "instant, which is told; the disk stays where it is. What no such disk is named is an\n"
	 "IMAGE, which nobody writes to.\n"
	 "\n"
	 "  --rate BYTES        copy at most that much a second\n"
	 "  --overwrite         TARGET exists: give up what it holds\n"
	 "  --verify            compare both whole before the copy is cut off; where they differ "
	 "they\n"
	 "                      are copied again, and the job fails\n"
	 "  --accept-repair     the same, and it goes on\n"
	 "  --flatten           IMAGE may be a linked clone; what shows through it is copied, too\n"
	 "\n"
	 "Of a disk that is served, as for relocate:\n"
	 "  --guest-latency MS|off|auto, --target-deadline TIME, --on-target-loss "
	 "wait|pause|TIME,\n"
	 "  --detach\n"
	 "\n"
	 "Ctrl-C leaves the job of a served disk running; the copy of an image it cancels.\n",
	 cmd_copy},
	{"drain",
	 "DATASTORE --to DATASTORE... --delete-source|--keep-source [--dry-run] [--map "
	 "IMAGE=DATASTORE]... "
	 "[--flatten] [--reserve SIZE] [--deny KIND]... [--parallel N] [--rate BYTES] "
	 "[--guest-latency MS|off] [--window FROM-TO] [--include PATTERN]...",
	 "all images of a folder move to others, those that are in use while they are in use",
	 "What it did not finish it goes on with when it is run again.\n"
	 "\n"
	 "  --to DATASTORE        a store that they may go to, a folder, a name of\n"
	 "                        blockmirror.conf(5), bm://HOST/FOLDER; any number of times\n"
	 "  --delete-source       what has moved, and was compared, is removed here\n"
	 "  --keep-source         it stays, marked as an old copy\n"
	 "  --map IMAGE=DATASTORE where that one goes (its name as --dry-run has it)\n"
	 "  --flatten             linked clones move, too, and take along what shows through "
	 "them\n" DRAIN_HELP,
	 cmd_drain},
	{"balance",
	 "DATASTORE DATASTORE... [--fill PERCENT] [--dry-run] [--reserve SIZE] [--deny KIND]... "
	 "[--parallel N] [--rate BYTES] [--guest-latency MS|off] [--window FROM-TO] "
	 "[--include PATTERN]...",
	 "images move until no datastore is too full, the fewest bytes",
	 "They leave those that are too full, and come to others; they are removed where they "
	 "were.\n"
	 "\n"
	 "  --fill PERCENT        of each that may be in use (default: what blockmirror.conf(5) "
	 "says\n"
	 "                        of it, then 80%)\n" DRAIN_HELP,
	 cmd_balance},
	{"maintenance", "on|off|status [DATASTORE|host]",
	 "nothing new lands on a datastore, or this host",
	 "DATASTORE is a name of blockmirror.conf(5), a folder, or bm://HOST/FOLDER; none means "
	 "this\n"
	 "host. What is there stays, and what has begun to come goes on. It lasts until \"off\".\n",
	 cmd_maintenance},
	{"verify", "A B | NAME", "compare two images byte for byte",
	 "NAME alone: both copies of a disk that is being moved, when they are in sync.\n"
	 "Exit status 0: equal; 1: they differ; 8: one of them cannot be read.\n",
	 cmd_verify},
	{"job",
	 "list|show|wait|pause|resume|cancel|set [JOB] [--for in-sync|done|released] [--rate "
	 "BYTES] "
	 "[--guest-latency MS|off|auto] [--target-deadline TIME] "
	 "[--on-target-loss wait|pause|TIME]",
	 "jobs: list, look at, wait for, change",
	 "JOB is NAME.NUMBER, or NAME for the disk's last job.\n", cmd_job},
	{"hand-over", "NAME [--to HOST] [--shared[=WHERE]]",
	 "the host that has a disk's storage serves the disk from now on",
	 "Its storage was relocated to bm://HOST/PATH before. Requests are held meanwhile; this "
	 "host "
	 "has\nthe disk no more, and its guest gets errors.\n"
	 "\n"
	 "  --to HOST         one of \"peer list\", which reaches the storage itself: NBD, iSCSI, "
	 "a\n"
	 "                    network file system\n"
	 "  --shared[=WHERE]  you say that it does; WHERE: by that path or URI\n",
	 cmd_hand_over},
	{"recover", "[--machine] NAME [--resume-here --peer-is-dead]",
	 "a standby becomes the disk, if the host that had it has passed it on",
	 "After a hand-over that was cut off. That host is asked.\n"
	 "\n"
	 "  --machine                     NAME is a machine whose move is in doubt: what is known\n"
	 "                                of it is told; or it runs here\n"
	 "  --resume-here --peer-is-dead  it is not asked: you know that it is dead, and will not\n"
	 "                                come back with the disk\n",
	 cmd_recover},
	{"machine", "add|list|show|remove|cancel [NAME] [--qmp SOCKET] [--hooks DIR]",
	 "virtual machines whose disks are ours",
	 "  add     NAME is the QEMU behind SOCKET; what disks it has is found out when it moves\n"
	 "  list, show, remove\n"
	 "  cancel  a move that is not decided yet; the machine stays here\n"
	 "\n"
	 "  --qmp SOCKET  add: QEMU's monitor, for us alone (-qmp unix:SOCKET,server=on,wait=off)\n"
	 "  --hooks DIR   add: programs that are called when it moves (blockmirrord(8))\n",
	 cmd_machine},
	{"migrate",
	 "MACHINE|--all --to HOST [--into FOLDER] [--overwrite] [--dry-run] [--rehearse] "
	 "[--pause-budget TIME] [--timeout TIME] [--policy wait|cancel|force|throttle] "
	 "[--rate BYTES] [--bind ADDRESS] [--window FROM-TO] [--copy-media] "
	 "[--shared[=DISK[=WHERE]]]... [--detach]\n"
	 "       blockmirror migrate arm|disarm NAME... [--to HOST] [--into FOLDER] "
	 "[--shared[=WHERE]] [--expires TIME] [--overwrite]",
	 "move a running machine, or have disks follow one that something else moves",
	 "MACHINE, one of \"machine list\", runs on HOST afterwards, with all of its disks, or "
	 "here\n"
	 "as before. Its guest stops once.\n"
	 "\n"
	 "  --pause-budget TIME  for at most so long, or it stays (default 300ms)\n"
	 "  --timeout TIME       all of it has to be done by then, or it stays\n"
	 "  --policy POLICY      while it changes its memory faster than it can be sent: wait, "
	 "until\n                       it does not (default, without --timeout); cancel, at the "
	 "--timeout;\n                       force, from the --timeout on it is stopped for "
	 "longer; "
	 "throttle,\n                       it is slowed down\n"
	 "  --rate BYTES         as \"rate\" does, until it is over: disks and memory together\n"
	 "  --bind ADDRESS       an address of this host: by the network of that the data goes\n"
	 "  --rehearse           do all but the last step: the guest stops, and runs on here\n"
	 "  --copy-media         what it only reads, a CD or firmware, is copied where HOST lacks "
	 "it\n"
	 "  --shared[=DISK]      you say that HOST reaches the storage of this disk, or of all, "
	 "itself:\n                       nothing is copied; =WHERE: by that path or URI. Without "
	 "it that\n                       is so of NBD, iSCSI and network file systems\n"
	 "  --dry-run            see whether it could, and tell what it would take; nothing is "
	 "changed\n"
	 "  --window FROM-TO     times of the day (22:00-06:00) between which it begins\n"
	 "  --all                all machines of this host, one after the other\n"
	 "  --detach             print the move's name and do not wait\n"
	 "\n"
	 "  arm     the disks go to HOST and stay in sync here, unless HOST reaches their storage\n"
	 "          itself (NBD, iSCSI, a network file system); the one whose guest writes first "
	 "there\n          is served there from then on\n"
	 "  disarm  they are not passed on any more; \"job cancel\" takes the copy there away\n"
	 "\n"
	 "  --to HOST         one of \"peer list\"\n"
	 "  --into FOLDER     of that host (default: the folder that the image is in here)\n"
	 "  --shared[=WHERE]  arm: you say that HOST reaches their storage; WHERE: by that path "
	 "or\n"
	 "                    URI; nothing is copied\n"
	 "  --expires TIME    arm: for so long (default 1h)\n"
	 "  --overwrite       what is there is given up, as an old copy of the disk\n",
	 cmd_migrate},
	{"hook", "relocate | libvirt DOMAIN OPERATION SUBOPERATION EXTRA | resume DISK",
	 "what hypervisors and managers call",
	 "  relocate  an object on standard input says which disk or machine is to be moved, by\n"
	 "            which id and where to; one on standard output how far that is. Asked again "
	 "by\n"
	 "            the same id it is not done again (docs/hooks.md)\n"
	 "  libvirt  as /etc/libvirt/hooks/qemu.d/ calls it, the domain's XML on standard input:\n"
	 "           \"prepare\" starts the disks that the domain has by our sockets, \"migrate\", "
	 "where\n"
	 "           it comes to, prints the XML with the sockets of this host, \"release\" stops "
	 "them\n"
	 "  resume   as blockmirrord calls it when a disk is served again: has libvirt resume the "
	 "domain\n           that QEMU stopped for it\n",
	 cmd_hook},
	{"whois", "IMAGE", "which image is the truth, and why",
	 "IMAGE is a path or a URI. Reads its mark and the records in STATE; needs no process.\n"
	 "Exit status 0: it is the truth of a disk; 1: it is not, and it is said where that is;\n"
	 "4: no disk is known to have to do with it; 6: do not serve it before you know more:\n"
	 "record and mark contradict each other, or the record is damaged.\n",
	 cmd_whois},
	{"peer",
	 "pair|add|allow|list|check|remove [NAME] [ADDRESS:PORT] [--address ADDRESS:PORT] "
	 "[--key-file FILE] [--x509 [--identity NAME]] [--receive FOLDER]... [--shared WHERE]... "
	 "[--replace]",
	 "hosts that trust each other",
	 "They are blockmirrord(8)'s, which has to listen for them.\n"
	 "\n"
	 "  pair NAME ADDRESS:PORT  make a key for the host NAME, reached there, and print the "
	 "line\n"
	 "                          to run on it\n"
	 "  add NAME ADDRESS:PORT   the other half of that: the key is read from the input; or,\n"
	 "                          with --x509, on both hosts: it is known by its certificate\n"
	 "  allow NAME              it may put disks into the folders given by --receive, have\n"
	 "                          disks on what is given by --shared, and nowhere else\n"
	 "  list\n"
	 "  check NAME              reach it: versions, round trip, bytes a second, MTU, clock\n"
	 "  remove NAME             it is let in no longer\n"
	 "\n"
	 "  --address ADDRESS:PORT  pair: where NAME reaches this host, when it is not what\n"
	 "                          blockmirrord listens on\n"
	 "  --key-file FILE         add: read the key from there\n"
	 "  --x509                  add: no key; certificates are those of blockmirrord --tls-dir\n"
	 "  --identity NAME         with it: what the certificate is for, dns:NAME, ip:ADDRESS,\n"
	 "                          uri:URI, email:ADDRESS or dn:DN (default: dns:NAME)\n"
	 "  --receive FOLDER        pair, add, allow: disks of NAME may come there; any number\n"
	 "                          of times\n"
	 "  --shared WHERE          pair, add, allow: disks of NAME that are there may be served\n"
	 "                          here: a folder, a file, a device, the URI of a server or of\n"
	 "                          what it has; any number of times\n"
	 "  --replace               pair, add: though NAME is known\n",
	 cmd_peer},
	{"rate", "[BYTES|off]", "what this host's moves may send to others, all together",
	 "Bytes a second; without it, it is shown. It holds at once, for all that run, and those "
	 "that\ncome, until the next boot.\n",
	 cmd_rate},
	{"events", "[NAME]", "print events of all disks, or one, as they happen", NULL, cmd_events},
	{0},
};

static void print_help(void)
{
	puts("usage: blockmirror [--run-dir DIR] [--state-dir DIR] [--json] COMMAND ...\n"
	     "       blockmirror --check-config [FILE]\n"
	     "\n"
	     "Moves the disks of running machines to other storage.\n");
	for (const struct command *c = commands; c->name; c++)
		printf("  %-11s %s\n", c->name, c->summary);
	puts("\n"
	     "  --run-dir DIR    sockets (default $BLOCKMIRROR_RUN_DIR, then the configuration's, "
	     "then\n"
	     "                   /run/blockmirror)\n"
	     "  --state-dir DIR  records (default $BLOCKMIRROR_STATE_DIR, then the "
	     "configuration's,\n"
	     "                   then /var/lib/blockmirror)\n"
	     "  --json           answers as JSON, errors too\n"
	     "  --progress STYLE auto, bar, plain, json or none\n"
	     "  --check-config   tell the mistakes in FILE (default $BLOCKMIRROR_CONFIG, then\n"
	     "                   /etc/blockmirror/blockmirror.conf) and its drop-ins\n"
	     "  --help, --version\n"
	     "\n"
	     "blockmirror COMMAND --help tells more. Sizes take k M G T (1024), rates are "
	     "bytes/s.");
}

static const struct command *find_command(const char *name)
{
	for (const struct command *c = commands; c->name; c++)
		if (!strcmp(c->name, name))
			return c;
	return NULL;
}

static int no_option(int option, const char *value, void *arg)
{
	bool *checks = arg;

	(void)value;
	*checks |= option == 'C';
	if (option == 'V')
		puts("blockmirror " BM_VERSION);
	return option == 'V' ? -1 : 0;
}

/* Mistakes in it are told first, unless they are what was asked for. */
static void configure(struct cli *cli, int argc, char **argv)
{
	bool asked = false;

	for (int i = 1; i < argc; i++)
		asked |= !strncmp(argv[i], "--check-c", 9);
	cli->config = cli_read_config(!asked, &cli->config_good);
	bm_config_use_folders(cli->config);
	cli->run_dir = bm_run_dir();
	cli->state_dir = bm_state_dir();
}

int main(int argc, char **argv)
{
	static const struct option own[] = {
		{"version", no_argument, NULL, 'V'}, {"check-config", no_argument, NULL, 'C'}, {0}};
	struct cli cli = {0};
	bool checks = false;
	int r, rest;

	signal(SIGPIPE, SIG_IGN);
	configure(&cli, argc, argv);
	r = cli_options(&cli, argc, argv, own, no_option, &checks);
	if (r == -1 && argc > 1 && !strcmp(argv[optind - 1], "--help"))
		print_help();
	if (r)
		return r < 0 ? 0 : r;
	rest = optind;
	if (checks)
		return argc - rest > 1 ? cli_usage(&cli, "one FILE is checked at a time")
				       : cli_check_config(&cli, argv[rest]);
	if (rest >= argc) {
		print_help();
		return 2;
	}
	cli.command = find_command(argv[rest]);
	if (!cli.command)
		return cli_usage(&cli, "unknown command \"%s\"", argv[rest]);
	optind = 0; /* glibc: begin anew */
	return cli.command->run(&cli, argc - rest, argv + rest);
}
