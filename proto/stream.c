#include "proto/check.h"
#include "proto/frame.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct mst_stream {
    size_t start, end; /* bytes not yet given out */
    uint8_t bytes[MST_MESSAGE_BYTES_MAX];
};

int mst_stream_new(struct mst_stream **ret_stream)
{
    struct mst_stream *stream = malloc(sizeof(*stream));

    if (!stream)
        return -ENOMEM;
    stream->start = stream->end = 0;
    *ret_stream = stream;
    return 0;
}

void mst_stream_free(struct mst_stream *stream)
{
    free(stream);
}

void *mst_stream_room(struct mst_stream *stream, size_t *ret_room)
{
    if (stream->start > 0) {
        memmove(stream->bytes, stream->bytes + stream->start, stream->end - stream->start);
        stream->end -= stream->start;
        stream->start = 0;
    }
    *ret_room = sizeof(stream->bytes) - stream->end;
    return stream->bytes + stream->end;
}

void mst_stream_filled(struct mst_stream *stream, size_t n)
{
    size_t room = sizeof(stream->bytes) - stream->end;

    stream->end += n < room ? n : room;
}

int mst_stream_next(struct mst_stream *stream, mst_envelope **ret_env, struct mst_why *why)
{
    const uint8_t *at = stream->bytes + stream->start;
    size_t have = stream->end - stream->start;
    size_t frame_bytes;
    int r;

    if (have < MST_FRAME_HEADER_BYTES)
        return 0;
    r = mst_frame_header(at, have, &frame_bytes, why);
    if (r == 0 && have < frame_bytes)
        return 0;
    if (r == 0)
        r = mst_frame_unpack(at, frame_bytes, ret_env, why);
    if (r < 0)
        return r; /* start stays: the same bytes give the same error for ever */
    stream->start += frame_bytes;
    return 1;
}

size_t mst_stream_partial(const struct mst_stream *stream)
{
    return stream->end - stream->start;
}
