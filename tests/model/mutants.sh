#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Breaks each rule of the engine in turn (tests/model/mutants.txt) and demands that the model test
# notices: mutants.sh [NAME]. TAP. SEEDS is how many each one gets at most.
set -u
cd "$(dirname "$0")/../.." || exit 1
BUILD=${BUILD:-build} SEEDS=${SEEDS:-200000}
make -s BUILD="$BUILD" "$BUILD/tests/model/mirror_test" || exit 1
work=$(mktemp -d "${TMPDIR:-/var/tmp}/mutants.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
"$BUILD/tests/model/mirror_test" -q -n "$((SEEDS / 10))" >/dev/null || {
	echo "not ok 1 - the engine itself passes"; exit 1; }
objects=("$BUILD"/obj/tests/model/{mirror_test,fake_disk,oracle}.o)

# Prints the names, or, with a name, applies that mutant to the copy and prints the files it changed.
mutants() {
	perl -e '
		my ($want, $dir) = @ARGV;
		open my $f, "<", "tests/model/mutants.txt" or die; local $/; my $text = <$f>;
		my (undef, @parts) = split /^=== /m, $text;
		for (@parts) {
			my ($head, $body) = split /\n/, $_, 2;
			my ($name) = $head =~ /^(\w+):/ or die "bad head: $head\n";
			if (!$want) { print "$head\n"; next }
			next if $name ne $want;
			$body =~ s/\n+\z/\n/;
			my (undef, @edits) = split /^--- /m, $body;
			my %files;
			for (@edits) {
				my ($file, $rest) = split /\n/, $_, 2;
				my ($old, $new) = split /^\+\+\+\n/m, $rest, 2;
				$old =~ s/\n\z//; $new =~ s/\n\z// if defined $new; $new //= "";
				my $path = "$dir/$file";
				open my $in, "<", $path or die "$path: $!\n"; my $code = <$in>; close $in;
				my $n = () = $code =~ /\Q$old\E/g;
				die "$name: its text is found $n times in $file, once is wanted\n" if $n != 1;
				$code =~ s/\Q$old\E/$new/;
				open my $out, ">", $path or die; print $out $code; close $out;
				$files{$file} = 1;
			}
			print "$_\n" for keys %files;
		}' "$@"
}

count=0 failed=0
one() {
	local head=$1 name=${1%%:*} files file result seed status
	count=$((count + 1))
	rm -rf "$work/src" && mkdir "$work/src" && cp -r blockmirror include tests "$work/src/"
	if ! files=$(mutants "$name" "$work/src" 2>"$work/why"); then
		echo "not ok $count - $head"; sed 's/^/# /' "$work/why"; failed=1; return
	fi
	cp "$BUILD/libblockmirror.a" "$work/lib.a"
	for file in $files; do
		# shellcheck disable=SC2086
		if ! (cd "$work/src" && ${CC:-cc} -std=gnu17 -D_GNU_SOURCE -I. -Iinclude -O2 -w -c -o \
			"$work/$(basename "$file" .c).o" "$file") 2>"$work/why"; then
			echo "not ok $count - $head (does not compile)"; sed 's/^/# /' "$work/why"; failed=1
			return
		fi
		ar r "$work/lib.a" "$work/$(basename "$file" .c).o" 2>/dev/null
	done
	${CC:-cc} -pthread -o "$work/test" "${objects[@]}" "$work/lib.a" -laio -lm 2>"$work/why" || {
		echo "not ok $count - $head (does not link)"; sed 's/^/# /' "$work/why"; failed=1; return; }
	result=$(timeout 600 "$work/test" -q -n "$SEEDS" 2>&1)
	status=$?
	if [ $status -eq 0 ] || [ $status -eq 124 ]; then
		echo "not ok $count - $head: NOT noticed in $SEEDS seeds, or ten minutes"; failed=1
	else
		seed=$(grep -m1 -oE 'seed [0-9]+ .*|Assertion .*' <<<"$result") || seed="it ended with status $status"
		echo "ok $count - $head"
		echo "# caught: ${seed:-$(tail -n 1 <<<"$result")}"
	fi
}

while IFS= read -r head; do
	[ $# -eq 0 ] || [ "${head%%:*}" = "$1" ] || continue
	one "$head"
done < <(mutants "" "")
echo "1..$count"
exit $failed
