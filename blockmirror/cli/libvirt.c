/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk in libvirt's words. From 9.2 on it lets QEMU wait for a connection that is lost; before, a
 * guest whose request fails meanwhile is at least stopped, and sees no error.
 */
#include <stdio.h>

#include "blockmirror/cli/cli.h"

#define RECONNECTS 9002 /* major * 1000 + minor */

static unsigned installed_version(void)
{
	FILE *f = popen("virsh --version 2>/dev/null", "re");
	unsigned major = 0, minor = 0;

	if (f && fscanf(f, "%u.%u", &major, &minor) < 1)
		major = 0;
	if (f)
		pclose(f);
	return major * 1000 + minor;
}

static void put_escaped(const char *text)
{
	for (; *text; text++)
		fputs(*text == '&'    ? "&amp;"
		      : *text == '<'  ? "&lt;"
		      : *text == '\'' ? "&apos;"
				      : (char[]){*text, '\0'},
		      stdout);
}

void cli_put_libvirt(const char *name, const char *socket)
{
	bool reconnects = installed_version() >= RECONNECTS;

	printf("<disk type='network' device='disk'><driver name='qemu' type='raw' "
	       "discard='unmap'%s/>"
	       "<source protocol='nbd' name='%s'><host transport='unix' socket='",
	       reconnects ? "" : " error_policy='stop' rerror_policy='stop'", name);
	put_escaped(socket);
	printf("'/>%s</source><target dev='vda' bus='virtio'/></disk>\n",
	       reconnects ? "<reconnect delay='30'/>" : "");
}
