#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Native machines under KVM, and the trackers on an older kernel: in a guest of QEMU without KVM, whose
# emulated CPU has SVM, so that the guest has a KVM of its own. KVM's dirty log does not see what the
# VMM's disk writes into RAM (bm_precopy_dirty()); and Linux 6.1 has no asynchronous userfaultfd.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

cache=${GUEST:-$BUILD/guest} root=$dir/root console=$dir/console seed=${SEED:-$RANDOM}
echo "# seed $seed"
have qemu-system-x86_64 busybox dpkg-deb python3.11 || { skip "under KVM" "QEMU, busybox, python3.11"; exit; }
fixtures/guest/build.sh "$cache" >"$dir/out" 2>&1 || { skip "under KVM" "no kernel"; exit; }

with_libraries() { # FILE…: what they are linked to, at the same place
	local library
	for library in $(for file; do ldd "$file" 2>/dev/null; done | grep -o '/[^ ]*' | sort -u); do
		install -D "$library" "$root$library"
	done
}

make_root() {
	local name python=/usr/lib/python3.11 programs
	mkdir -p "$root"/{bin,dev,proc,tmp,modules,parts,usr/bin,usr/lib/python3}
	install -D /bin/busybox tests/system/native_kvm.init -t "$root/bin"
	mv "$root/bin/native_kvm.init" "$root/init"
	for name in sh mount insmod uname truncate sed sort uniq sleep poweroff; do
		ln -s busybox "$root/bin/$name"
	done
	dpkg-deb -x "$(find "$cache" -name 'linux-image-*.deb' | sort -V | tail -n 1)" "$dir/kernel"
	for name in irqbypass kvm kvm-amd; do
		find "$dir/kernel" -name "$name.ko" -exec cp {} "$root/modules" \;
	done
	programs=("$BUILD/blockmirror-nbd" "$BUILD/fixtures/tinyvm" "$BUILD/tests/unit/ram_tracker_test")
	cp "${programs[@]}" tests/system/native_*.py "$root/parts"
	cp -L /usr/bin/python3.11 "$root/usr/bin/python3"
	tar -c -C "$(dirname $python)" --exclude=test --exclude=__pycache__ --exclude='config-*' \
		"$(basename $python)" python3/dist-packages/nbd.py \
		"$(cd /usr/lib && echo python3/dist-packages/libnbdmod.*.so)" | tar -x -C "$root/usr/lib"
	with_libraries "${programs[@]}" /usr/bin/python3.11 "$python"/lib-dynload/*.so \
		/usr/lib/python3/dist-packages/libnbdmod.*.so
	(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$dir/initrd"
}

run_guest() {
	timeout 900 qemu-system-x86_64 -accel tcg -cpu EPYC,+svm -M q35 -smp 2 -m 1500M -nodefaults \
		-no-user-config -display none -no-reboot -kernel "$cache/vmlinuz" -initrd "$dir/initrd" \
		-append "console=ttyS0 quiet mitigations=off seed=$seed" -serial "file:$console"
	tr -d '\r' <"$console" >"$console.txt"
	grep -q '^the end' "$console.txt"
}

said() { grep -E "$1" "$console.txt"; }

check "a guest is made" make_root
check "it runs to its end" run_guest
check "the trackers: no test fails" said '^# ok - tests'
for name in released_stays paused_runs_on_when_its_mover_goes throttled_until_it_fits; do
	check "under KVM: ${name//_/ }" said "^good $name"
done
check "under KVM: moves with harm at random" said '^12 moves: '
said '^12 moves: ' | sed 's/^/# /'
check "all of them were under KVM" said 'ran on cpu kvm tracker kvm'
check_fails "and none was not" 1 '' said 'ran on cpu process'
