#include "cli/drill_judge.h"

#include "base/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static uint64_t ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (to_ns - from_ns) / MST_NS_PER_MS : 0;
}

static const char *json_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    return text ? text : "";
}

static uint64_t json_number(const json_t *object, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(object, key));

    return value > 0 ? (uint64_t)value : 0;
}

/* --- what happened --- */

/* The part of a recovery that gave vm an epoch in (after, upto]; NULL: none. */
static const json_t *recovery_of(const json_t *recoveries, const char *vm, uint64_t after, uint64_t upto, uint64_t *ret_id)
{
    const json_t *found = NULL;
    size_t i, j;
    json_t *recovery, *part;

    json_array_foreach((json_t *)recoveries, i, recovery)
    {
        json_array_foreach(json_object_get(recovery, "vms"), j, part)
        {
            uint64_t epoch = json_number(part, "epoch_to");
            if (strcmp(json_text(part, "vm"), vm) != 0 || epoch <= after || epoch > upto)
                continue;
            found = part;
            *ret_id = json_number(recovery, "id");
        }
    }
    return found;
}

/* Word of the protocol -> word of drill files. */
static void method_word(const json_t *start, char *buf, size_t size)
{
    const char *word = json_text(start, "method");

    if (strcmp(word, "resumed_in_place") == 0)
        word = "in-place";
    else if (strcmp(word, "booted") == 0)
        word = "restarted"; /* the node's word; in a recovery that is what it means */
    snprintf(buf, size, "%s", word[0] ? word : "none");
    for (char *c = buf; *c; c++)
        if (*c == '_')
            *c = '-';
}

static bool never_at_once(const struct drill_vm_record *vm, const struct drill_beat **ret_beat)
{
    const struct drill_beat *newest = NULL;

    for (size_t i = 0; i < vm->beats_count; i++) {
        const struct drill_beat *beat = &vm->beats[i];
        if (newest && !beat->late && beat->epoch < newest->epoch) {
            *ret_beat = beat;
            return false;
        }
        if (newest && beat->epoch == newest->epoch && beat->node[0] && newest->node[0] && strcmp(beat->node, newest->node) != 0) {
            *ret_beat = beat;
            return false;
        }
        if (!newest || beat->epoch >= newest->epoch)
            newest = beat;
    }
    return true;
}

/* Guest's time between the beat that the resumed save holds and the last one before: the age of that save. */
static uint64_t age_of_save(const struct drill_vm_record *vm, size_t last, uint64_t resumed_n)
{
    const struct drill_beat *before = &vm->beats[last];
    uint64_t life_ms = 0;

    for (size_t i = last + 1; i-- > 0;) {
        const struct drill_beat *beat = &vm->beats[i];
        if (beat->guest_ms > before->guest_ms)
            break; /* an earlier life */
        life_ms = before->guest_ms - beat->guest_ms;
        if (beat->n <= resumed_n || beat->boot)
            break;
    }
    return life_ms;
}

/* Steps back in the beat numbers between beats[begin] and beats[end - 1], each against the beat before it. */
static void count_steps(struct drill_episode *ep, const struct drill_vm_record *vm, size_t begin, size_t end)
{
    for (size_t i = begin > 0 ? begin : 1; i < end; i++) {
        const struct drill_beat *a = &vm->beats[i - 1], *b = &vm->beats[i];

        if (b->epoch < a->epoch)
            continue; /* two at once: judged apart */
        if (b->boot || b->n == 1 || (b->n <= a->n && b->n <= vm->beats[0].n)) {
            ep->memory_lost = true;
            ep->lost_beats += a->n;
            ep->rpo_ms += a->guest_ms;
        } else if (b->n <= a->n) {
            ep->lost_beats += a->n - b->n + 1;
            uint64_t age = age_of_save(vm, i - 1, b->n - 1);
            if (age > ep->rpo_ms)
                ep->rpo_ms = age;
        } else {
            ep->missed_beats += b->n - a->n - 1;
        }
    }
}

/* Largest time without a beat that touches the episode; the beats around it when the VM was not moved. */
static void count_gaps(struct drill_episode *ep, const struct drill_vm_record *vm, size_t begin, size_t end)
{
    const struct drill_beat *a = begin > 0 ? &vm->beats[begin - 1] : NULL;
    uint64_t from_ns = a ? a->at_ns : ep->t0_ns;

    for (size_t i = begin; i <= end; i++) {
        const struct drill_beat *b = i < end ? &vm->beats[i] : NULL;
        uint64_t gap_ms = ms_between(from_ns, b ? b->at_ns : ep->end_ns);

        if (gap_ms >= ep->gap_ms) {
            ep->gap_ms = gap_ms;
            if (!ep->moved) {
                ep->last = a;
                ep->first = b;
            }
        }
        if (!b)
            break;
        from_ns = b->at_ns;
        a = b;
    }
}

static void episode_fill(struct drill_episode *ep, const struct drill_vm_record *vm, const json_t *recoveries)
{
    size_t begin = 0, end = vm->beats_count, first = SIZE_MAX;
    const json_t *part;

    while (begin < vm->beats_count && vm->beats[begin].at_ns < ep->t0_ns)
        begin++;
    while (end > begin && vm->beats[end - 1].at_ns >= ep->end_ns)
        end--;
    for (size_t i = begin; i < end && first == SIZE_MAX; i++)
        if (vm->beats[i].epoch > ep->epoch_from)
            first = i;
    snprintf(ep->to, sizeof(ep->to), "%s", ep->from);
    ep->epoch_to = ep->epoch_from;
    if (first != SIZE_MAX) {
        ep->moved = true;
        ep->first = &vm->beats[first];
        for (size_t i = first; i-- > 0 && !ep->last;)
            if (vm->beats[i].epoch <= ep->epoch_from)
                ep->last = &vm->beats[i];
        ep->rto_ms = ms_between(ep->t0_ns, ep->first->at_ns);
        /* it may have been moved again: the last place counts */
        const struct drill_beat *final = ep->first;
        for (size_t i = first; i < end; i++)
            if (vm->beats[i].epoch >= final->epoch)
                final = &vm->beats[i];
        ep->epoch_to = final->epoch;
        if (final->node[0])
            snprintf(ep->to, sizeof(ep->to), "%s", final->node);
    }
    count_steps(ep, vm, begin, end);
    count_gaps(ep, vm, begin, end);
    if (!ep->moved)
        ep->rto_ms = ep->gap_ms;
    part = recovery_of(recoveries, vm->name, ep->epoch_from, ep->moved ? ep->epoch_to : UINT64_MAX, &ep->recovery_id);
    ep->start = json_object_get(part, "start");
    method_word(ep->start, ep->method, sizeof(ep->method));
    if (ep->moved && part && json_text(part, "to")[0] && !ep->first->node[0])
        snprintf(ep->to, sizeof(ep->to), "%s", json_text(part, "to"));
    if (strcmp(ep->method, "restarted") == 0)
        ep->memory_lost = true;
}

/* When the VM was first seen in an epoch above the one it had at t0; UINT64_MAX: never. */
static uint64_t moved_at(const struct drill_vm_record *vm, const struct drill_hit *hit)
{
    for (size_t i = 0; i < vm->beats_count; i++)
        if (vm->beats[i].at_ns >= hit->t0_ns && vm->beats[i].epoch > hit->epoch)
            return vm->beats[i].at_ns;
    return UINT64_MAX;
}

/* Epoch and node of an unstruck VM at a time, from its beats. */
static void place_at(struct drill_episode *ep, const struct drill_vm_record *vm)
{
    const struct drill_beat *beat = vm->beats_count > 0 ? &vm->beats[0] : NULL;

    for (size_t i = 0; i < vm->beats_count && vm->beats[i].at_ns < ep->t0_ns; i++)
        beat = &vm->beats[i];
    ep->epoch_from = beat ? beat->epoch : vm->epoch;
    snprintf(ep->from, sizeof(ep->from), "%s", beat && beat->node[0] ? beat->node : vm->node);
}

static uint64_t first_fault_ns(const struct drill_record *rec)
{
    uint64_t first = UINT64_MAX;

    for (unsigned i = 0; i < rec->faults_count; i++)
        if (rec->faults[i].t0_ns > 0 && rec->faults[i].t0_ns < first)
            first = rec->faults[i].t0_ns;
    return first == UINT64_MAX ? rec->begin_ns : first;
}

static void episodes_make(struct drill_vm_result *res, const struct drill_record *rec)
{
    const struct drill_vm_record *vm = res->vm;
    unsigned i = 0;

    if (vm->hits_count == 0) {
        struct drill_episode *ep = &res->episodes[res->episodes_count++];
        ep->t0_ns = first_fault_ns(rec);
        ep->end_ns = rec->end_ns;
        place_at(ep, vm);
        episode_fill(ep, vm, rec->recoveries);
        return;
    }
    while (i < vm->hits_count) {
        const struct drill_hit *hit = &vm->hits[i++];
        struct drill_episode *ep = &res->episodes[res->episodes_count++];
        uint64_t moved_ns = moved_at(vm, hit);

        while (i < vm->hits_count && vm->hits[i].t0_ns < moved_ns)
            i++;
        ep->struck = true;
        ep->fault = hit->fault;
        ep->t0_ns = hit->t0_ns;
        ep->end_ns = i < vm->hits_count ? vm->hits[i].t0_ns : rec->end_ns;
        ep->epoch_from = hit->epoch;
        memcpy(ep->from, hit->node, sizeof(ep->from));
        episode_fill(ep, vm, rec->recoveries);
    }
}

/* --- objectives --- */

__attribute__((format(printf, 5, 6))) static void check_add(struct drill_check *checks, unsigned *count, const char *name,
                                                            bool passed, const char *fmt, ...)
{
    struct drill_check *check;
    va_list args;

    if (*count == DRILL_CHECKS_MAX)
        return;
    check = &checks[(*count)++];
    snprintf(check->name, sizeof(check->name), "%s", name);
    check->passed = passed;
    va_start(args, fmt);
    vsnprintf(check->measured, sizeof(check->measured), fmt, args);
    va_end(args);
}

__attribute__((format(printf, 2, 3))) static void allowed_set(struct drill_vm_result *res, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(res->checks[res->checks_count - 1].allowed, sizeof(res->checks[0].allowed), fmt, args);
    va_end(args);
}

#define vm_check(res, name, passed, ...) check_add((res)->checks, &(res)->checks_count, name, passed, __VA_ARGS__)

static uint64_t last_fault_ns(const struct drill_record *rec)
{
    uint64_t last = rec->begin_ns;

    for (unsigned i = 0; i < rec->faults_count; i++)
        if (rec->faults[i].t0_ns > last)
            last = rec->faults[i].t0_ns;
    return last;
}

static void judge_numbers(struct drill_vm_result *res, const struct drill_record *rec, const struct mst_drill_vm *want)
{
    uint64_t rto_ms = 0, rpo_ms = 0, lost = 0;

    for (unsigned i = 0; i < res->episodes_count; i++) {
        const struct drill_episode *ep = &res->episodes[i];
        rto_ms = ep->rto_ms > rto_ms ? ep->rto_ms : rto_ms;
        rpo_ms = ep->rpo_ms > rpo_ms ? ep->rpo_ms : rpo_ms;
        lost += ep->lost_beats;
    }
    if (want->has_rto_ms) {
        vm_check(res, "rto", rto_ms <= want->rto_ms, "%" PRIu64 " ms", rto_ms);
        allowed_set(res, "%u ms", want->rto_ms);
    }
    if (want->has_rpo_ms) {
        vm_check(res, "rpo", rpo_ms <= want->rpo_ms, "%" PRIu64 " ms", rpo_ms);
        allowed_set(res, "%u ms", want->rpo_ms);
    }
    if (want->has_lost_beats_max) {
        vm_check(res, "lost-beats", lost <= want->lost_beats_max, "%" PRIu64, lost);
        allowed_set(res, "%u", want->lost_beats_max);
    }
    if (want->has_mirrored_ms) {
        uint64_t from_ns = last_fault_ns(rec), since_ns = res->vm->mirrored_ns;
        uint64_t took_ms = ms_between(from_ns, since_ns);

        if (since_ns)
            vm_check(res, "mirrored", took_ms <= want->mirrored_ms, "on %s, %" PRIu64 " ms after the last fault", res->vm->mirror,
                     took_ms);
        else
            vm_check(res, "mirrored", false, "nobody has its checkpoints");
        allowed_set(res, "%u ms", want->mirrored_ms);
    }
}

static bool placed_as(const struct drill_episode *ep, const char *want)
{
    if (strcmp(want, "same") == 0)
        return strcmp(ep->from, ep->to) == 0;
    if (strcmp(want, "other") == 0)
        return strcmp(ep->from, ep->to) != 0;
    return strcmp(want, ep->to) == 0;
}

static void judge_words(struct drill_vm_result *res, const struct mst_drill_vm *want)
{
    const struct drill_episode *wrong = NULL, *end = &res->episodes[res->episodes_count - 1];
    const char *method = want->method && strcmp(want->method, "booted") == 0 ? "restarted" : want->method;
    bool lost = false;

    for (unsigned i = 0; i < res->episodes_count; i++)
        lost = lost || res->episodes[i].memory_lost;
    if (want->memory && strcmp(want->memory, "any") != 0) {
        vm_check(res, "memory", strcmp(want->memory, lost ? "lost" : "kept") == 0, "%s", lost ? "lost" : "kept");
        allowed_set(res, "%s", want->memory);
    }
    if (want->method) {
        for (unsigned i = 0; i < res->episodes_count && !wrong; i++)
            if (strcmp(res->episodes[i].method, method) != 0)
                wrong = &res->episodes[i];
        vm_check(res, "method", !wrong, "%s", wrong ? wrong->method : end->method);
        allowed_set(res, "%s", want->method);
    }
    if (want->placed) {
        wrong = NULL;
        for (unsigned i = 0; i < res->episodes_count && !wrong; i++)
            if (!placed_as(&res->episodes[i], want->placed))
                wrong = &res->episodes[i];
        vm_check(res, "placed", !wrong, "%s -> %s", wrong ? wrong->from : end->from, wrong ? wrong->to : end->to);
        allowed_set(res, "%s", want->placed);
    }
}

/* Starts of this VM by recoveries of this drill. */
static unsigned starts_of(const json_t *recoveries, const char *vm)
{
    unsigned count = 0;
    size_t i, j;
    json_t *recovery, *part;

    json_array_foreach((json_t *)recoveries, i, recovery)
    {
        json_array_foreach(json_object_get(recovery, "vms"), j, part)
        {
            char method[32];
            method_word(json_object_get(part, "start"), method, sizeof(method));
            if (strcmp(json_text(part, "vm"), vm) == 0 && strcmp(method, "none") != 0)
                count++;
        }
    }
    return count;
}

/* What every drill demands of every VM. */
static void judge_always(struct drill_vm_result *res, const struct drill_record *rec)
{
    const struct drill_vm_record *vm = res->vm;
    const struct drill_beat *wrong = NULL, *last = drill_last_beat(vm);
    unsigned starts = starts_of(rec->recoveries, vm->name);
    uint64_t age_ms = last ? ms_between(last->at_ns, rec->end_ns) : 0;

    if (never_at_once(vm, &wrong))
        vm_check(res, "never-two-at-once", true, "one at a time");
    else
        vm_check(res, "never-two-at-once", false,
                 "beat %" PRIu64 " of epoch %" PRIu64 " on %s after a beat of a newer one or another node", wrong->n,
                 wrong->epoch, wrong->node[0] ? wrong->node : "?");
    allowed_set(res, "one at a time");
    wrong = NULL;
    for (size_t i = 0; i < vm->beats_count && !wrong; i++)
        if (!vm->beats[i].ok)
            wrong = &vm->beats[i];
    if (wrong)
        vm_check(res, "witness", false, "BROKEN at beat %" PRIu64 " of epoch %" PRIu64, wrong->n, wrong->epoch);
    else
        vm_check(res, "witness", vm->beats_count > 0, "ok in %zu beats", vm->beats_count);
    allowed_set(res, "ok in every beat");
    if (last)
        vm_check(res, "beats", age_ms <= DRILL_FRESH_MS, "last beat %" PRIu64 " ms before the end", age_ms);
    else
        vm_check(res, "beats", false, "no beat at all");
    allowed_set(res, "%u ms", DRILL_FRESH_MS);
    vm_check(res, "recovered-once", starts <= vm->hits_count, "%u starts by recoveries", starts);
    allowed_set(res, "%u", vm->hits_count);
}

/* The proofs under which VMs of this drill were given to another epoch. */
static bool proof_is(const char *proof, const char *kind)
{
    /* "return": the keeper that was started again saw that nothing of the one before runs. */
    if (strcmp(kind, "keeper") == 0 && strncasecmp(proof, "return", strlen("return")) == 0)
        return true;
    return strncasecmp(proof, kind, strlen(kind)) == 0;
}

static void judge_fence(struct drill_result *result, const struct mst_drill_conf *conf, const struct drill_record *rec)
{
    const char *shown = NULL;
    bool passed = true;
    size_t i, j;
    json_t *recovery, *part;

    json_array_foreach(rec->recoveries, i, recovery)
    {
        const char *proof = json_text(recovery, "fence_proof");
        bool ours = false;

        json_array_foreach(json_object_get(recovery, "vms"), j, part)
        {
            char method[32];
            method_word(json_object_get(part, "start"), method, sizeof(method));
            for (unsigned v = 0; v < rec->vms_count; v++)
                if (strcmp(rec->vms[v].name, json_text(part, "vm")) == 0 && strcmp(method, "none") != 0)
                    ours = true;
        }
        if (!ours)
            continue;
        if (!shown || !proof_is(proof, conf->fence))
            shown = proof[0] ? proof : "no proof";
        if (!proof_is(proof, conf->fence))
            passed = false;
    }
    check_add(result->checks, &result->checks_count, "fence", passed && shown, "%.120s",
              shown ? shown : "no recovery moved a VM");
    snprintf(result->checks[result->checks_count - 1].allowed, sizeof(result->checks[0].allowed), "%.60s", conf->fence);
}

static void judge_faults(struct drill_result *result, const struct drill_record *rec)
{
    unsigned injected = 0;

    for (unsigned i = 0; i < rec->faults_count; i++)
        if (rec->faults[i].returned_ns > 0 && rec->faults[i].status == 0)
            injected++;
    check_add(result->checks, &result->checks_count, "faults-injected", injected == rec->faults_count && injected > 0, "%u",
              injected);
    snprintf(result->checks[result->checks_count - 1].allowed, sizeof(result->checks[0].allowed), "%u", rec->faults_count);
}

int drill_judge(const struct mst_drill_conf *conf, const struct drill_record *rec, struct drill_result *ret)
{
    memset(ret, 0, sizeof(*ret));
    ret->vms = calloc(rec->vms_count > 0 ? rec->vms_count : 1, sizeof(*ret->vms));
    if (!ret->vms)
        return -ENOMEM;
    ret->vms_count = rec->vms_count;
    ret->passed = true;
    for (unsigned i = 0; i < rec->vms_count; i++) {
        struct drill_vm_result *res = &ret->vms[i];

        res->vm = &rec->vms[i];
        episodes_make(res, rec);
        judge_numbers(res, rec, &conf->vms[i]);
        judge_words(res, &conf->vms[i]);
        judge_always(res, rec);
        res->passed = true;
        for (unsigned c = 0; c < res->checks_count; c++)
            res->passed = res->passed && res->checks[c].passed;
        ret->passed = ret->passed && res->passed;
    }
    judge_faults(ret, rec);
    if (conf->fence)
        judge_fence(ret, conf, rec);
    for (unsigned c = 0; c < ret->checks_count; c++)
        ret->passed = ret->passed && ret->checks[c].passed;
    return 0;
}

void drill_result_free(struct drill_result *result)
{
    free(result->vms);
    result->vms = NULL;
}

bool drill_expects_move(const struct mst_drill_vm *vm)
{
    if (vm->method)
        return strcmp(vm->method, "none") != 0;
    if (vm->placed && strcmp(vm->placed, "same") != 0)
        return !vm->node || strcmp(vm->placed, vm->node) != 0;
    return vm->memory && strcmp(vm->memory, "any") != 0;
}
