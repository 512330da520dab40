/*
 * What the lane does, for somebody who watches a guest whose lane stays open.
 */
#include "lane.h"

/*
 * Note what was done. When there is no room for another, Python takes those that are noted.
 * Whatever becomes of that, the next note is the first again.
 */
void note_done(const struct note *done)
{
    struct notes *notes = &G.notes;

    ((struct note *)notes->notes)[notes->noted] = *done;
    if (++notes->noted == notes->room) {
        call_python(notes->full);
        notes->noted = 0;
    }
}
