#include "cli/drill_run.h"

#include "base/file.h"
#include "cli/show.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const methods[] = {"none", "booted", "pulled-live", "pulled-shadow", "in-place", "restarted"};

static bool vm_known(const struct drill_plan *plan, const char *name)
{
    for (unsigned i = 0; i < plan->conf->vms_count; i++)
        if (strcmp(plan->definitions[i]->name, name) == 0)
            return true;
    return false;
}

static int faults_check(const struct drill_plan *plan, const struct mst_drill_fault *faults, unsigned count, const char *list,
                        struct mst_why *why)
{
    for (unsigned i = 0; i < count; i++) {
        const struct mst_drill_fault *fault = &faults[i];
        bool of_vm, of_coordinator;

        if (!drill_kind_known(fault->kind, &of_vm, &of_coordinator))
            return mst_why_set(why, -EINVAL, "%s[%u].kind: there is no fault '%s'; docs/DRILLS.md lists them", list, i,
                               fault->kind);
        if (of_vm && !fault->vm)
            return mst_why_set(why, -EINVAL, "%s[%u].vm: %s strikes a VM, and none is named", list, i, fault->kind);
        if (!of_vm && fault->vm)
            return mst_why_set(why, -EINVAL, "%s[%u].vm: %s strikes a whole node; leave vm out", list, i, fault->kind);
        if (fault->vm && !vm_known(plan, fault->vm))
            return mst_why_set(why, -EINVAL, "%s[%u].vm: the drill has no VM '%s'", list, i, fault->vm);
        if (fault->mirror_of && !vm_known(plan, fault->mirror_of))
            return mst_why_set(why, -EINVAL, "%s[%u].mirror-of: the drill has no VM '%s'", list, i, fault->mirror_of);
        if (!fault->vm && !fault->node && !fault->mirror_of)
            return mst_why_set(why, -EINVAL, "%s[%u].node: %s wants a node", list, i, fault->kind);
        if (fault->at_ms >= plan->conf->timeout_ms)
            return mst_why_set(why, -EINVAL, "%s[%u].at-ms: %u is not before timeout-ms, %u", list, i, fault->at_ms,
                               plan->conf->timeout_ms);
    }
    return 0;
}

static int vm_check(const struct drill_plan *plan, unsigned index, struct mst_why *why)
{
    const struct mst_drill_vm *vm = &plan->conf->vms[index];
    bool known = !vm->method;

    for (unsigned i = 0; i < index; i++)
        if (strcmp(plan->definitions[i]->name, plan->definitions[index]->name) == 0)
            return mst_why_set(why, -EINVAL, "vms[%u]: VM '%s' is there twice", index, plan->definitions[index]->name);
    for (size_t i = 0; !known && i < sizeof(methods) / sizeof(methods[0]); i++)
        known = strcmp(vm->method, methods[i]) == 0;
    if (!known)
        return mst_why_set(why, -EINVAL,
                           "vms[%u].method: '%s' is not a method: none, booted, pulled-live, pulled-shadow, in-place, restarted",
                           index, vm->method);
    if (vm->memory && strcmp(vm->memory, "kept") != 0 && strcmp(vm->memory, "lost") != 0 && strcmp(vm->memory, "any") != 0)
        return mst_why_set(why, -EINVAL, "vms[%u].memory: '%s', allowed kept, lost, any", index, vm->memory);
    return mst_vm_definition_check(plan->definitions[index], why);
}

int drill_plan_check(const struct drill_plan *plan, struct mst_why *why)
{
    const struct mst_drill_conf *conf = plan->conf;
    int r = 0;

    if (conf->vms_count == 0 || conf->vms_count > MST_VMS_PER_NODE)
        return mst_why_set(why, -EINVAL, "vms: %u VMs, allowed 1..%u", conf->vms_count, MST_VMS_PER_NODE);
    if (conf->faults_count == 0 || conf->faults_count > DRILL_FAULTS_MAX)
        return mst_why_set(why, -EINVAL, "faults: %u faults, allowed 1..%u", conf->faults_count, DRILL_FAULTS_MAX);
    for (unsigned i = 0; i < conf->vms_count && r == 0; i++)
        r = vm_check(plan, i, why);
    if (r == 0)
        r = faults_check(plan, conf->faults, conf->faults_count, "faults", why);
    if (r == 0)
        r = faults_check(plan, conf->undo, conf->undo_count, "undo", why);
    return r;
}

static int definition_load(struct drill_plan *plan, const char *path, unsigned index, struct mst_why *why)
{
    const struct mst_drill_vm *vm = &plan->conf->vms[index];
    const char *slash = strrchr(path, '/');
    int folder = vm->definition[0] == '/' || !slash ? 0 : (int)(slash - path + 1);
    char file[PATH_MAX];
    char *name;
    int r = mst_path(file, sizeof(file), "%.*s%s", folder, path, vm->definition);

    if (r < 0)
        return mst_why_set(why, r, "%s: path is too long", vm->definition);
    r = mst_vm_definition_load(file, &plan->definitions[index], why);
    if (r < 0 || !vm->name)
        return r;
    name = strdup(vm->name);
    if (!name)
        return mst_why_set(why, -ENOMEM, "out of memory");
    free(plan->definitions[index]->name);
    plan->definitions[index]->name = name;
    return 0;
}

int drill_plan_load(const char *path, struct drill_plan *ret_plan, struct mst_why *why)
{
    struct drill_plan plan = {.file = path};
    int r = mst_drill_conf_load(path, &plan.conf, why);

    if (r < 0)
        return r;
    plan.definitions = calloc(plan.conf->vms_count + 1, sizeof(Mainstay__VmDefinition *));
    if (!plan.definitions)
        r = mst_why_set(why, -ENOMEM, "out of memory");
    for (unsigned i = 0; r == 0 && i < plan.conf->vms_count; i++)
        r = definition_load(&plan, path, i, why);
    if (r == 0) {
        r = drill_plan_check(&plan, why);
        if (r < 0)
            mst_why_prefix(why, r, "%s", path);
    }
    if (r < 0) {
        drill_plan_free(&plan);
        return r;
    }
    *ret_plan = plan;
    return 0;
}

void drill_plan_free(struct drill_plan *plan)
{
    for (unsigned i = 0; plan->definitions && i < plan->conf->vms_count; i++)
        if (plan->definitions[i])
            mainstay__vm_definition__free_unpacked(plan->definitions[i], NULL);
    free(plan->definitions);
    mst_drill_conf_free(plan->conf);
    *plan = (struct drill_plan){0};
}

int cmd_drill_check(struct context *ctx)
{
    struct drill_plan plan;
    struct mst_why why = {0};

    if (drill_plan_load(ctx->opt->args[0], &plan, &why) < 0) {
        complain(-EINVAL, &why);
        return EXIT_USAGE;
    }
    if (ctx->opt->json) {
        json_t *object = json_pack("{s:b, s:s, s:i, s:i}", "ok", 1, "drill", plan.conf->name, "vms", (int)plan.conf->vms_count,
                                   "faults", (int)plan.conf->faults_count);
        show_json(stdout, object);
        json_decref(object);
    } else {
        printf("%s: drill %s is well-formed: %u VMs, %u faults\n", ctx->opt->args[0], plan.conf->name, plan.conf->vms_count,
               plan.conf->faults_count);
    }
    drill_plan_free(&plan);
    return EXIT_OK;
}
