# shellcheck shell=bash
# SPDX-License-Identifier: BSD-3-Clause
# Sourced by what proves that tests can fail: mutants are small, wrong edits of the code.
#
# Their file begins with prose. Then each has a head, "=== NAME: what it breaks", and one or more
# edits: "--- FILE", lines that are there once in FILE, "+++", and what takes their place.

# mutants FILE: prints the heads, without "=== ".
# mutants FILE NAME DIR: applies that mutant to the copy in DIR, prints which files it changed.
mutants() {
	perl -e '
		my ($list, $want, $dir) = @ARGV;
		open my $f, "<", $list or die; local $/; my $text = <$f>;
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

# copy_tree PROGRAM…: a copy of the project in $dir/src, and of its build, with these programs, in
# $dir/build.
copy_tree() {
	mutant_programs=("$@")
	mkdir -p "$dir/build/fixtures" "$dir/src"
	cp -a Makefile blockmirror include nbd-server tests fixtures "$dir/src"
	cp -a "$BUILD/obj" "$BUILD"/*.a "${@/#/$BUILD/}" "$dir/build"
}

make_mutant() {
	make -s -C "$dir/src" CFLAGS=-O1 WARN=-w BUILD="$dir/build" "${mutant_programs[@]/#/$dir/build/}"
}

# campaign_notices COMMAND…: runs a campaign of the mutant: that something is violated, and not just that
# nothing works.
campaign_notices() {
	! BUILD=$dir/build "$@" ${SEED:+--seed "$SEED"} >"$dir/out" 2>&1 || return
	grep '^# violation: seed' "$dir/out" | grep -qv Traceback
}

# break_with FILE NAME: builds that mutant in the copy, calls "notices NAME", and mends the copy.
break_with() {
	local file files status=1
	if files=$(mutants "$1" "$2" "$dir/src" 2>"$dir/out") && make_mutant >"$dir/out" 2>&1; then
		notices "$2"
		status=$?
	fi
	for file in $files; do # the object is newer than its source again
		cp -p "$file" "$dir/src/$file"
		cp "$BUILD/obj/${file%.c}.o" "$dir/build/obj/${file%.c}.o"
	done
	return $status
}

# break_each FILE [NAME…]: each mutant, or those; a line of TAP for each.
break_each() {
	local list=$1 head
	shift
	while IFS= read -r head; do
		[ $# -eq 0 ] || [[ " $* " == *" ${head%%:*} "* ]] || continue
		break_with "$list" "${head%%:*}"
		result $? "$head: it is noticed" "$dir/out"
		grep -m 1 '^# violation: seed' "$dir/out" | cut -c 1-400
	done < <(mutants "$list")
}
