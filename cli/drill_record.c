#include "cli/drill_record.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- kinds --- */

static const struct {
    const char *kind;
    bool undoes, of_vm, of_coordinator;
} kinds[] = {
    {"qemu-kill", false, true, false},        {"qemu-stop", false, true, false},
    {"agent-kill", false, false, false},      {"agent-stop", false, false, false},
    {"keeper-kill", false, false, false},     {"keeper-stop", false, false, false},
    {"machine-check", false, false, false},   {"panic", false, false, false},
    {"power-off", false, false, false},       {"cut", false, false, false},
    {"coordinator-kill", false, false, true}, {"power-on", true, false, false},
    {"coordinator-stop", false, false, true}, {"coordinator-continue", true, false, true},
    {"etcd-kill", false, false, true},        {"etcd-stop", false, false, true},
    {"etcd-continue", true, false, true},     {"heal", true, false, false},
    {"keeper-continue", true, false, false},  {"agent-continue", true, false, false},
    {"link-slow", false, false, false},       {"link-well", true, false, false},
};

bool drill_kind_known(const char *kind, bool *ret_of_vm, bool *ret_of_coordinator)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strcmp(kinds[i].kind, kind) != 0)
            continue;
        *ret_of_vm = kinds[i].of_vm;
        *ret_of_coordinator = kinds[i].of_coordinator;
        return true;
    }
    return false;
}

bool drill_kind_undoes(const char *kind)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (strcmp(kinds[i].kind, kind) == 0)
            return kinds[i].undoes;
    return false;
}

/* --- lines --- */

/* Decimal digits at *at, moved past them. False: none, or too many to be a number. */
static bool take_number(const char **at, uint64_t *ret_value)
{
    const char *c = *at;
    uint64_t value = 0;

    if (!isdigit((unsigned char)*c))
        return false;
    for (; isdigit((unsigned char)*c); c++) {
        if (value > UINT64_MAX / 10 - 1)
            return false;
        value = value * 10 + (uint64_t)(*c - '0');
    }
    *ret_value = value;
    *at = c;
    return true;
}

static bool word_ends(char c)
{
    return c == '\0' || c == ' ' || c == '\r';
}

/* "SECONDS.MILLIS" */
static bool take_time(const char *at, uint64_t *ret_ms)
{
    uint64_t seconds, millis;

    if (!take_number(&at, &seconds) || *at != '.' || seconds > UINT64_MAX / 2000)
        return false;
    at++;
    if (!take_number(&at, &millis) || millis > 999 || !word_ends(*at))
        return false;
    *ret_ms = seconds * 1000 + millis;
    return true;
}

/* at: behind "beat ". */
static bool beat_parse(const char *at, struct drill_beat *ret)
{
    const char *field;
    bool ok;

    if (!take_number(&at, &ret->n) || ret->n == 0 || *at != ' ')
        return false;
    field = strstr(at, " witness=");
    if (!field)
        return false;
    field += strlen(" witness=");
    ok = strncmp(field, "ok", 2) == 0 && word_ends(field[2]);
    if (!ok && strncmp(field, "BROKEN", 6) != 0)
        return false;
    ret->ok = ok;
    ret->guest_ms = 0;
    field = strstr(at, " t=");
    return !field || take_time(field + 3, &ret->guest_ms);
}

/* Last place of word in line, NULL: none. */
static const char *last_of(const char *line, const char *word)
{
    const char *found = NULL;

    for (const char *at = line; (at = strstr(at, word)) != NULL; at++)
        found = at;
    return found;
}

enum drill_line drill_line_parse(const char *line, struct drill_beat *ret_beat)
{
    const char *beat = last_of(line, "beat "), *boot = last_of(line, "guest boot");

    if (boot && (!beat || boot > beat))
        return DRILL_LINE_BOOT;
    return beat && beat_parse(beat + strlen("beat "), ret_beat) ? DRILL_LINE_BEAT : DRILL_LINE_OTHER;
}

/* --- records --- */

int drill_record_init(struct drill_record *rec, unsigned vms_count)
{
    memset(rec, 0, sizeof(*rec));
    rec->recoveries = json_array();
    rec->vms = calloc(vms_count > 0 ? vms_count : 1, sizeof(*rec->vms));
    if (!rec->vms || !rec->recoveries) {
        drill_record_free(rec);
        return -ENOMEM;
    }
    rec->vms_count = vms_count;
    return 0;
}

void drill_record_free(struct drill_record *rec)
{
    for (unsigned i = 0; rec->vms && i < rec->vms_count; i++)
        free(rec->vms[i].beats);
    free(rec->vms);
    json_decref(rec->recoveries);
    rec->vms = NULL;
    rec->recoveries = NULL;
    rec->vms_count = 0;
}

struct drill_vm_record *drill_record_vm(struct drill_record *rec, const char *name)
{
    for (unsigned i = 0; i < rec->vms_count; i++)
        if (strcmp(rec->vms[i].name, name) == 0)
            return &rec->vms[i];
    return NULL;
}

const struct drill_beat *drill_last_beat(const struct drill_vm_record *vm)
{
    return vm->beats_count > 0 ? &vm->beats[vm->beats_count - 1] : NULL;
}

void drill_record_place(struct drill_vm_record *vm, const char *node, uint64_t epoch)
{
    if (epoch < vm->epoch)
        return;
    vm->epoch = epoch;
    if (node && node[0])
        snprintf(vm->node, sizeof(vm->node), "%s", node);
}

static int beat_append(struct drill_vm_record *vm, const struct drill_beat *beat, const struct drill_record_events *events)
{
    if (vm->beats_count == vm->beats_room) {
        size_t room = vm->beats_room > 0 ? vm->beats_room * 2 : 256;
        struct drill_beat *beats = vm->beats_room < DRILL_BEATS_MAX ? realloc(vm->beats, room * sizeof(*beats)) : NULL;

        if (!beats)
            return vm->beats_room < DRILL_BEATS_MAX ? -ENOMEM : -ENOSPC;
        vm->beats = beats;
        vm->beats_room = room;
    }
    vm->beats[vm->beats_count++] = *beat;
    drill_record_place(vm, beat->node, beat->epoch);
    if (events && events->on_beat)
        events->on_beat(vm, beat, events->arg);
    return 0;
}

/* A joined line counts once the next beat of the same epoch follows it: after a jump back to an older save the two halves
 * belong to different beats, and only the number that follows can tell. */
static int pending_settle(struct drill_vm_record *vm, const struct drill_beat *next, const struct drill_record_events *events)
{
    struct drill_beat joined = vm->pending;

    vm->pending.n = 0;
    if (joined.n == 0 || next->boot || joined.epoch != next->epoch || next->n != joined.n + 1)
        return 0;
    return beat_append(vm, &joined, events);
}

/* What the epoch before left without a newline; NULL: nothing. */
static const char *leftover(const struct drill_vm_record *vm, uint64_t epoch)
{
    const struct drill_stream *before = NULL;

    for (unsigned i = 0; i < vm->streams_count; i++)
        if (vm->streams[i].epoch < epoch && (!before || vm->streams[i].epoch > before->epoch))
            before = &vm->streams[i];
    return before && before->part_bytes > 0 ? before->part : NULL;
}

static int line_done(struct drill_vm_record *vm, struct drill_stream *stream, struct drill_beat beat,
                     const struct drill_record_events *events)
{
    bool first = stream->first_line;
    const char *before;
    enum drill_line kind = drill_line_parse(stream->part, &beat);
    int r;

    stream->first_line = false;
    if (kind == DRILL_LINE_OTHER && first && (before = leftover(vm, stream->epoch)) != NULL) {
        char joined[2 * DRILL_LINE_BYTES];

        snprintf(joined, sizeof(joined), "%s%s", before, stream->part);
        if (drill_line_parse(joined, &beat) == DRILL_LINE_BEAT) {
            beat.joined = true;
            vm->pending = beat;
            return 0;
        }
    }
    switch (kind) {
    case DRILL_LINE_BOOT:
        stream->boot = true;
        vm->pending.n = 0;
        return 0;
    case DRILL_LINE_BEAT:
        beat.boot = stream->boot;
        stream->boot = false;
        r = pending_settle(vm, &beat, events);
        return r < 0 ? r : beat_append(vm, &beat, events);
    default:
        if (events && events->on_other && stream->part_bytes > 0)
            events->on_other(vm, stream->part, stream->epoch, events->arg);
        return 0;
    }
}

static struct drill_stream *stream_of(struct drill_vm_record *vm, uint64_t epoch, uint64_t offset)
{
    struct drill_stream *stream = NULL;

    for (unsigned i = 0; i < vm->streams_count; i++)
        if (vm->streams[i].epoch == epoch)
            return &vm->streams[i];
    if (vm->streams_count < DRILL_STREAMS_MAX) {
        stream = &vm->streams[vm->streams_count++];
    } else { /* forget the oldest */
        stream = &vm->streams[0];
        for (unsigned i = 1; i < vm->streams_count; i++)
            if (vm->streams[i].epoch < stream->epoch)
                stream = &vm->streams[i];
    }
    *stream = (struct drill_stream){.epoch = epoch, .next = offset, .first_line = true};
    return stream;
}

static void part_add(struct drill_stream *stream, char c)
{
    if (c == '\0')
        return; /* would end the text early */
    if (stream->part_bytes + 1 == sizeof(stream->part)) {
        /* No line of ours is so long: keep the end, in which one may begin. */
        size_t keep = sizeof(stream->part) / 2;
        memmove(stream->part, stream->part + stream->part_bytes - keep, keep);
        stream->part_bytes = keep;
    }
    stream->part[stream->part_bytes++] = c;
    stream->part[stream->part_bytes] = '\0';
}

int drill_record_feed(struct drill_vm_record *vm, uint64_t epoch, uint64_t offset, const char *node, const void *data, size_t len,
                      uint64_t now_ns, bool late, const struct drill_record_events *events)
{
    struct drill_stream *stream = stream_of(vm, epoch, offset);
    struct drill_beat beat = {.at_ns = now_ns, .epoch = epoch, .late = late};
    const char *bytes = data;
    int r = 0;

    if (len > UINT64_MAX - offset || offset + len <= stream->next)
        return 0;
    snprintf(beat.node, sizeof(beat.node), "%s", node ? node : "");
    if (offset > stream->next) {
        vm->holes += offset - stream->next;
        stream->part_bytes = 0; /* the line's middle is lost */
        stream->part[0] = '\0';
        stream->next = offset;
    }
    for (size_t i = (size_t)(stream->next - offset); i < len && r == 0; i++) {
        if (bytes[i] != '\n') {
            part_add(stream, bytes[i]);
            continue;
        }
        r = line_done(vm, stream, beat, events);
        stream->part_bytes = 0;
        stream->part[0] = '\0';
    }
    stream->next = offset + len;
    return r;
}

/* A link that is slow stops nobody. */
static bool kind_strikes(const char *kind)
{
    return !drill_kind_undoes(kind) && strcmp(kind, "link-slow") != 0;
}

/* And nothing since has undone it. */
static bool struck(const struct drill_record *rec, const char *node)
{
    uint64_t last_ns = 0;
    bool is_struck = false;

    for (unsigned i = 0; i < rec->faults_count; i++) {
        const struct drill_fault_record *f = &rec->faults[i];

        if (f->t0_ns <= last_ns || f->vm[0] || strcmp(f->kind, "link-slow") == 0 || strcmp(f->node, node) != 0)
            continue;
        last_ns = f->t0_ns;
        is_struck = !drill_kind_undoes(f->kind);
    }
    return is_struck;
}

void drill_record_mirror(const struct drill_record *rec, struct drill_vm_record *vm, const char *node, uint64_t now_ns)
{
    snprintf(vm->mirror, sizeof(vm->mirror), "%s", node);
    if (!node[0] || struck(rec, node))
        vm->mirrored_ns = 0;
    else if (vm->mirrored_ns == 0)
        vm->mirrored_ns = now_ns;
}

int drill_record_strike(struct drill_record *rec, unsigned fault)
{
    const struct drill_fault_record *f = &rec->faults[fault];
    int struck = 0;

    if (!kind_strikes(f->kind))
        return 0;
    for (unsigned i = 0; i < rec->vms_count; i++) {
        struct drill_vm_record *vm = &rec->vms[i];
        bool strikes = f->vm[0] ? strcmp(f->vm, vm->name) == 0 : f->node[0] && strcmp(f->node, vm->node) == 0;

        if (!strikes || vm->hits_count == DRILL_HITS_MAX)
            continue;
        struct drill_hit *hit = &vm->hits[vm->hits_count++];
        *hit = (struct drill_hit){.fault = fault, .t0_ns = f->t0_ns, .epoch = vm->epoch};
        memcpy(hit->node, vm->node, sizeof(hit->node));
        struck++;
    }
    return struck;
}
