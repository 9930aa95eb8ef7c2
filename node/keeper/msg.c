#include "node/keeper/keeper.h"

#include <string.h>

void mst_done_fill(Mainstay__Done *done, int err, const struct mst_why *why)
{
    mainstay__done__init(done);
    done->error = err < 0 ? -err : err;
    if (why && why->text[0])
        done->text = (char *)why->text; /* only read while it is packed */
    else if (err)
        done->text = strerror(done->error);
}
