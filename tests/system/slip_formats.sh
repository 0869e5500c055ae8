#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Under the format layer, each format of a running QEMU: raw, qcow2 (with a snapshot and a bitmap;
# encrypted; an overlay), luks go to another folder and back, and have what was written before, between
# and after. Those that ask how long their file is are refused, and not touched.
# shellcheck source-path=SCRIPTDIR source=slip.bash
# shellcheck disable=SC2054 # commas are QEMU's
. "$(dirname "$0")/slip.bash"

have jq qemu-system-x86_64 qemu-img qemu-io || { skip "formats under QEMU" "QEMU, jq"; exit; }
mkdir "$dir/a" "$dir/b" "$dir/elsewhere"
secret=secret,id=key,data=0123456789
refused=(vmdk vdi qed vpc vhdx)

# add NAME OPTIONS-OF-THE-FORMAT [FILE]
drives=(-object "$secret")
add() {
	drives+=(-blockdev "driver=file,node-name=$1-file,filename=$dir/a/${3:-$1.img},discard=unmap"
		-blockdev "$2,node-name=$1-node,file=$1-file" -device "virtio-blk-pci,id=$1,drive=$1-node")
}
create() { qemu-img create -q --object "$secret" "$@"; }
make_images() {
	truncate -s 8M "$dir/a/raw.img" &&
		create -f qcow2 "$dir/a/qcow2.img" 8M && qemu-io -c "write -q -P 7 1M 1M" "$dir/a/qcow2.img" &&
		qemu-img snapshot -c kept "$dir/a/qcow2.img" && qemu-img bitmap --add "$dir/a/qcow2.img" since &&
		encrypting create -f luks -o key-secret=key,iter-time=10 "$dir/a/luks.img" 8M &&
		encrypting create -f qcow2 -o encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10 \
			"$dir/a/secret.img" 8M &&
		create -f qcow2 "$dir/elsewhere/base" 8M && qemu-io -c "write -q -P 9 6M 1M" "$dir/elsewhere/base" &&
		create -f qcow2 -b "$dir/elsewhere/base" -F qcow2 "$dir/a/linked.img"
}

io() { # DRIVE COMMAND, as the guest would
	local who
	who=$(monitor query-block | jq -r --arg d "/machine/peripheral/$1" \
		'map(select((.qdev // "") | startswith($d)))[0].qdev')
	monitor human-monitor-command "$(jq -n --arg c "qemu-io -d $who \"$2\"" '{"command-line":$c}')" | tee "$dir/io"
	! grep -qiE "failed|error|conflict|unknown" "$dir/io"
}
file_is() { # DRIVE FILE
	[ "$(monitor query-named-block-nodes '{"flat":true}' |
		jq -r --arg n "$1-file" '.[] | select(."node-name" == $n).file')" = "$2" ]
}
there_and_back() { # DRIVE
	io "$1" "write -P 1 2M 1M" && drive=$1 slip "$dir/b" --delete-source && nothing_left &&
		file_is "$1" "$dir/b/$1.img" && io "$1" "read -P 1 2M 1M" && io "$1" "write -P 2 3M 1M" &&
		drive=$1 slip "$dir/a" --delete-source && nothing_left && file_is "$1" "$dir/a/$1.img" &&
		io "$1" "read -P 1 2M 1M" && io "$1" "read -P 2 3M 1M" && io "$1" "write -P 3 4M 1M"
}
# holds FILE OPTIONS COMMAND…: what is read when QEMU has ended, and the image is opened anew.
holds() {
	local image=$1 options=$2 command
	shift 2
	for command; do
		qemu-io -r --object "$secret" --image-opts -c "$command" "$options,file.filename=$image" | tee "$dir/io"
		! grep -qiE "failed|error" "$dir/io" || return 1
	done
}
written=("read -P 1 2M 1M" "read -P 2 3M 1M" "read -P 3 4M 1M")
bitmap_counts() {
	qemu-img info --output=json "$dir/a/qcow2.img" | jq -e '."format-specific".data.bitmaps[0] |
		.name == "since" and (.flags | index("in-use") | not)'
}
snapshot_kept() {
	qemu-img convert -l snapshot.name=kept -O raw "$dir/a/qcow2.img" "$dir/snapshot" &&
		holds "$dir/snapshot" driver=raw "read -P 7 1M 1M" "read -P 0 2M 1M"
}

check "images" make_images
for kind in "${refused[@]}"; do
	create -f "$kind" "$dir/a/$kind.img" 8M
	add "$kind" "driver=$kind"
done
add raw driver=raw
add qcow2 driver=qcow2
add luks driver=luks,key-secret=key
add secret driver=qcow2,encrypt.format=luks,encrypt.key-secret=key
add linked driver=qcow2
check "a QEMU with drives of all formats" qemu_idle "${drives[@]}"
for kind in raw qcow2 luks secret linked; do
	check "$kind: there and back" there_and_back "$kind"
done
for kind in "${refused[@]}"; do
	fingerprint "$dir/a/$kind.img"
	drive=$kind check_fails "$kind: refused" 3 "E_UNSUPPORTED.*$kind" slip "$dir/b"
	check "$kind: nothing is left" nothing_left
	check "$kind: QEMU has it" file_is "$kind" "$dir/a/$kind.img"
	check "$kind: it has not been touched" untouched "$dir/a/$kind.img"
	check "$kind: nor marked" marked "$dir/a/$kind.img" ""
done
stop "$qemu"
check "raw has what was written" holds "$dir/a/raw.img" driver=raw "${written[@]}"
check "qcow2 has" holds "$dir/a/qcow2.img" driver=qcow2 "${written[@]}" "read -P 7 1M 1M"
check "its snapshot is what it was" snapshot_kept
check "its bitmap is there, and counts" bitmap_counts
check "luks has" holds "$dir/a/luks.img" driver=luks,key-secret=key "${written[@]}"
check "encrypted qcow2 has" holds "$dir/a/secret.img" \
	driver=qcow2,encrypt.format=luks,encrypt.key-secret=key "${written[@]}"
check "an overlay has" holds "$dir/a/linked.img" driver=qcow2 "${written[@]}" "read -P 9 6M 1M"
for kind in qcow2 secret linked; do
	check "$kind: qemu-img check" qemu-img check -q --object "$secret" --image-opts \
		"driver=qcow2,file.filename=$dir/a/$kind.img$([ $kind != secret ] || echo ,encrypt.format=luks,encrypt.key-secret=key)"
done
