/* Reads a disk past the cache: in sequence, and then at random. A line says where it is. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { BIG = 1 << 20, SMALL = 4096, RANDOM_READS = 4000 };

static void say(const char *word)
{
	printf("%s\n", word);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	int disk = open(argv[argc - 1], O_RDONLY | O_DIRECT);
	off_t size = lseek(disk, 0, SEEK_END);
	char *room = aligned_alloc(BIG, BIG);
	uint64_t state = 1;

	if (disk < 0 || size < BIG)
		return 1;
	say("READER-BEGINS");
	for (off_t at = 0; at + BIG <= size; at += BIG)
		if (pread(disk, room, BIG, at) != BIG)
			return 1;
	say("READER-SEQUENCE");
	for (int n = 0; n < RANDOM_READS; n++) {
		state = state * 6364136223846793005u + 1442695040888963407u;
		if (pread(disk, room, SMALL, (off_t)((state >> 33) % (size / SMALL)) * SMALL) != SMALL)
			return 1;
	}
	say("READER-RANDOM");
	return 0;
}
