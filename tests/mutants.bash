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
