#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# A machine with a TPM that swtpm emulates moves to another host and back: what its guest has written into a
# register of it is there, each time once. What is kept of it on the host that it has left is nobody's any
# more, and nothing is left on a host that it did not come to.
# shellcheck source-path=SCRIPTDIR source=machine.bash
. "$(dirname "$0")/machine.bash"

need_machine
have swtpm || { skip "a TPM" "swtpm"; exit; }
guest_init=tpm_guest.init guest_files=(init init.records)
budget=30s tpm=$dir/a/tpm now=''
machine_more=(-chardev "socket,id=chrtpm,path=$tpm.sock" -tpmdev "emulator,id=tpm0,chardev=chrtpm"
	-device "tpm-tis,tpmdev=tpm0" -chardev "file,id=console2,path=$console.2,append=on" -serial chardev:console2)

start_tpm() {
	mkdir -p "$tpm"
	spawn_on a swtpm socket --tpm2 --tpmstate "dir=$tpm" --ctrl "type=unixio,path=$tpm.sock" --terminate
	wait_for 5 test -S "$tpm.sock"
}

# What is in the register after each of the guest's writes: the hash of what was in it before, and of what
# was written.
extended() { grep -ac '^tpm ' "$console.2"; }
chain() {
	/usr/bin/python3 - "$console.2" <<-'EOF' && ! grep -a ERROR "$console.2"
		import hashlib, sys
		lines = open(sys.argv[1], "rb").read().replace(b"\r", b"").split(b"\n")[:-1]
		lines = [line.split() for line in lines if line.startswith(b"tpm ")]
		last = bytes(32)
		for count, (_, number, value) in enumerate(lines, 1):
		    last = hashlib.sha256(last + b"Z" * 32).digest()
		    if int(number) != count or bytes.fromhex(value.decode()) != last:
		        sys.exit(f"write {count}: {number} {value}, and not {last.hex()}")
		print(len(lines), "writes")
		sys.exit(not lines)
	EOF
}
tpm_goes_on() { wait_for 20 extended_to $(($(extended) + 5)); }
extended_to() { [ "$(extended)" -ge "$1" ]; }

# emulators HOST: how many of them there are.
emulators() {
	local p n=0
	for p in $(host_processes "$1"); do [ "$(cat "/proc/$p/comm" 2>/dev/null)" != swtpm ] || n=$((n + 1)); done
	echo $n
}
one_emulator() { [ "$(emulators "$1")" -eq 1 ] && [ "$(emulators "$2")" -eq 0 ]; }
tpm_folders() { find "$dir/$1/state" -path '*/tpm/*' -type d ! -name '*.away'; }
nothing_on() {
	tpm_folders "$1"
	find "$dir/$1/run/machines" -name '*.tpm*' ! -name '*.log'
	[ -z "$(tpm_folders "$1")" ] && [ -z "$(find "$dir/$1/run/machines" -name '*.tpm*' ! -name '*.log')" ]
}

# stays NAME
stays() {
	check "$1: it is here, with its disks" wait_for 40 settles a b
	check "$1: here" [ "$now" = a ]
	check "$1: nothing of its TPM is on b" wait_for 10 nothing_on b
	check "$1: there is one TPM" wait_for 10 one_emulator a b
	check "$1: its guest goes on" goes_on
	check "$1: with its TPM" tpm_goes_on
	check "$1: the TPM has lost nothing" chain
}
# goes FROM TO
goes() {
	check "$1 to $2: it moves" move "$1" "$2"
	check "it is there, with its disks" wait_for 40 settles "$1" "$2"
	check "there" [ "$now" = "$2" ]
	check "there is one TPM, on $2" wait_for 10 one_emulator "$2" "$1"
	check "its guest goes on" goes_on
	check "with its TPM" tpm_goes_on
	check "the TPM has lost nothing" chain
	sed 's/^/# /' "$dir/out"
	check "nor have the disks" sound_machine "$2"
}

# other_machine [OPTION…]: one without a guest, whose swtpm has these options; without any, none.
other_machine() {
	local at=$dir/a/other words=(socket --tpm2 --tpmstate "dir=$dir/a/other" --ctrl "type=unixio,path=$dir/a/other.sock" --terminate)
	mkdir -p "$at"
	spawn_on a swtpm "${words[@]}" "$@"

	wait_for 5 test -S "$at.sock" || return
	spawn_on a qemu-system-x86_64 -machine pc,accel=tcg -m 32776k -nodefaults -display none \
		-qmp "unix:$at.qmp,server=on,wait=off" -chardev "socket,id=c,path=$at.sock" \
		-tpmdev emulator,id=tpm1,chardev=c -device tpm-tis,tpmdev=tpm1
	other=$pid
	wait_for 10 test -S "$at.qmp" && bm_on a machine add other --qmp "$at.qmp"
}
refused() {
	printf '00112233445566778899aabbccddeeff' >"$dir/key"
	check "a machine with a TPM that is encrypted" other_machine --key "file=$dir/key,format=hex,mode=aes-cbc"
	check_fails "it is not moved" 3 "E_UNSUPPORTED: the machine has a TPM .tpm1. whose state is encrypted" \
		bm_on a migrate other --to host-b
	stop "$other"
	check "b's swtpm is not to be found" hide_swtpm
	check_fails "b takes no TPM then" 3 "E_HOOK: .*this host has no swtpm" move a b
	check "b has one" restart_b --machine-hooks "$hooks"
}
restart_b() { host_stop b && host_start b "$@"; }
# A search path with all but that.
hide_swtpm() {
	local p
	mkdir -p "$dir/bin"
	for p in /usr/bin/* /bin/*; do ln -sf "$p" "$dir/bin/"; done
	rm "$dir/bin/swtpm"
	host_stop b && host_before[b]="env PATH=$dir/bin ${host_before[b]}" && host_start b && host_before[b]="${host_before[a]}"
}

steps_known
machine_up start_tpm
check "its guest writes into its TPM" tpm_goes_on
refused
stays "refused"
check "it is rehearsed" move a b --rehearse
stays "rehearsed"
for step in target-prepared source-streaming target-loaded target-voted source-voted source-fenced; do
	at $step die
	check "a process dies: $step" not move a b
	check "it came there" came_there
	stays "$step"
done
goes a b
check "what a had of its TPM is nobody's" [ ! -e "$tpm" -a -e "$tpm.away/tpm2-00.permall" ]
check "b keeps it where it is kept" [ -e "$(tpm_folders b)/tpm2-00.permall" ]
goes b a
check "nothing of it is on b" nothing_on b
at target-started die
goes a b
at source-done die
goes b a
check "b has nothing of it that is used" nothing_on b
