#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Which image is the truth, and why: "blockmirror whois", with a real case for each answer; and what
# contradicts itself is not served.
# shellcheck source-path=SCRIPTDIR source=disk.bash
. "$(dirname "$0")/disk.bash"

have jq getfattr setfattr qemu-io || { skip "whois" "jq, attr, qemu-utils"; exit; }
records=$BLOCKMIRROR_STATE_DIR/disks

# whois NAME STATUS VERDICT IMAGE [NEXT]: NEXT is a pattern of the command to type.
whois() {
	local name=$1 status=$2 verdict=$3 image=$4 next=${5:-}
	check_fails "$name: \"$verdict\", exit status $status" "$status" "^this is  *$verdict" "$bm" whois "$image"
	cp "$dir/out" "$dir/told"
	[ -z "$next" ] || check "$name: what to type" grep -E "^next  *$next" "$dir/told"
	check "$name: the same as JSON" whois_json "$status" "$verdict" "$image"
}
whois_json() {
	local status
	"$bm" whois --json "$3" >"$dir/json"
	status=$?
	cat "$dir/json"
	[ $status -eq "$1" ] && jq -e --arg v "$2" --argjson s "$1" \
		'.verdict == $v and .truth == ($s == 0) and (.why | length > 9) and (.next | length > 5)' \
		"$dir/json" >/dev/null
}
write_mark() { setfattr -n user.blockmirror -v "$2" "$1"; }
change_mark() { write_mark "$1" "$(getfattr --only-values -n user.blockmirror "$1" 2>/dev/null | jq -c "$2")"; }

truncate -s 4M "$dir/a.img" "$dir/plain.img"
qemu-io -f raw -c 'write -P 1 0 4M' "$dir/a.img" >/dev/null
whois "an image of no disk" 4 unknown "$dir/plain.img"
check_fails "one that is not there" 4 E_NOT_FOUND "$bm" whois "$dir/nothing.img"
whois "an export of no disk" 4 unknown "nbd+unix:///x?socket=$dir/none.sock"

serve web "$dir/a.img"
whois "the truth, served" 0 truth "$dir/a.img" "blockmirror serve web"
"$bm" relocate web "$dir/b.img" --switch manual --detach >/dev/null
wait_for 20 job_is web .phase in-sync
whois "the source of a job that runs" 0 truth "$dir/a.img"
whois "its target" 1 target "$dir/b.img" "blockmirror serve web"
kill_disk web
whois "its target, with nobody there" 1 target "$dir/b.img" "blockmirror serve web"
serve web
"$bm" job cancel web >/dev/null
"$bm" job wait web >/dev/null
cp -r "$records/web" "$dir/backup"
check "it moves" "$bm" relocate web "$dir/c.img"
unserve web
whois "the new image" 0 truth "$dir/c.img" "blockmirror serve web"
whois "the old one" 1 retired "$dir/a.img" "blockmirror serve web"
check "it is told where the truth is" grep -q "^the truth  *$dir/c.img" <("$bm" whois "$dir/a.img")
check_fails "the old one is not served" 3 "E_RETIRED.*c.img.*--force" "$bm" serve other "$dir/a.img"
check "it may be read" "$bm" copy "$dir/a.img" "$dir/read.img"
whois "a copy of it is no disk's" 4 unknown "$dir/read.img"
"$bm" --state-dir "$dir/elsewhere" whois "$dir/c.img" >"$dir/told"
check "another STATE: the mark tells which one" \
	grep -E "^next  *blockmirror --state-dir '$BLOCKMIRROR_STATE_DIR' serve web" "$dir/told"

# A record that comes from a backup, made before the disk moved.
mv "$records/web" "$dir/latest"
cp -r "$dir/backup" "$records/web"
whois "STATE from a backup" 6 outdated "$dir/a.img" "blockmirror whois $dir/c.img"
whois "STATE from a backup, the new image" 6 outdated "$dir/c.img" "mv .*serve web $dir/c.img"
check_fails "it is not served" 6 "E_RECORD: the record in $records/web is older.*whois" "$bm" serve web
check "the record is as it was" cmp "$dir/backup/record" "$records/web/record"
check "but by force it is" serve web --force
unserve web
whois "from then on that is the truth" 0 truth "$dir/a.img"
check "without force" serve web
unserve web
rm -r "$records/web"
cp -r "$dir/latest" "$records/web"
change_mark "$dir/a.img" '.state = "retired"'
check "the latest record is served" serve web
unserve web

# Two records, and the record of another disk.
cp -r "$records/web" "$records/twin"
whois "two records name it" 6 disputed "$dir/c.img"
check_fails "a record under another name" 6 "E_RECORD: the record in $records/twin is that of another disk, web" \
	"$bm" serve twin
rm -r "$records/twin"
cp -r "$BLOCKMIRROR_STATE_DIR" "$dir/second"
check_fails "a copy of STATE is refused" 3 "E_OWNED.*$records/web" "$bm" --state-dir "$dir/second" serve web
mv "$BLOCKMIRROR_STATE_DIR" "$dir/aside"
check "one that was moved is not" serve web --state-dir "$dir/second"
unserve web
rm -rf "$BLOCKMIRROR_STATE_DIR"
mv "$dir/aside" "$BLOCKMIRROR_STATE_DIR"

# Images that go elsewhere; records that go.
mv "$dir/c.img" "$dir/d.img"
whois "a renamed image" 1 renamed "$dir/d.img" "mv $dir/d.img $dir/c.img; blockmirror serve web"
whois "where it was" 4 missing "$dir/c.img" "put the image back"
cp "$dir/plain.img" "$dir/c.img"
write_mark "$dir/c.img" '{"state":"active","disk":"0123","record":"/nowhere"}'
whois "another disk's image in its place" 6 foreign "$dir/c.img"
mv "$dir/d.img" "$dir/c.img"
cp "$records/web/record" "$dir/record"
head -c 40 "$dir/record" >"$records/web/record"
whois "half a record" 6 damaged "$dir/c.img" "put .*/record back"
check_fails "it says so" 6 "E_RECORD.*cut short.*whois" "$bm" serve web
: >"$records/web/record"
check_fails "an empty one, too" 6 "E_RECORD.*it is empty" "$bm" serve web
sed 's/"size":4/"size":5/' "$dir/record" >"$records/web/record"
check_fails "and one that was changed" 6 "E_RECORD.*checksum" "$bm" serve web
rm -r "$records/web"
whois "no record any more" 4 orphan "$dir/c.img" "blockmirror serve NAME $dir/c.img"
whois "nor of the old one" 1 retired "$dir/a.img"
check "what no record owns is served by any name" serve new "$dir/c.img"
check "and is that disk's" "$bm" whois "$dir/c.img"

# What bears no mark.
truncate -s 4M "$dir/export.img"
start_qemu_nbd "$dir/export.sock" "$dir/export.img"
export_uri=$uri
whois "an export of nobody" 4 unknown "$export_uri"
serve far "$export_uri"
whois "the export that a disk is on" 0 truth "$export_uri" "blockmirror serve far"
check "the disk comes home" "$bm" relocate far "$dir/far.img"
whois "the export that it was on" 1 retired "$export_uri" "blockmirror serve far"
unserve far

# Undo, a failed target.
"$bm" relocate new "$dir/e.img" --undo-window 1h --detach >/dev/null
wait_for 20 phase_is new undo-window
whois "in the undo window the target is the truth" 0 truth "$dir/e.img"
whois "and the source is not" 1 retired "$dir/c.img"
check "undone" "$bm" undo new
wait_for 20 job_is new .state undone
whois "after undo the source is" 0 truth "$dir/c.img"
check_fails "and the target is not" 1 "^this is" "$bm" whois "$dir/e.img"
unserve new
check_fails "it is not served" 3 "E_RETIRED|E_UNUSABLE" "$bm" serve other "$dir/e.img"
