/*
 * device.c - an open card.
 */
#include <stdio.h>
#include <string.h>

#include "device.h"

enum { LEAST_CAPABILITY = 75 }; /* tensor cores with int8 */

/* ---- What cards there are ------------------------------------------------------------------------- */

static l2c_status count_cards(const l2c_driver *cu, int32_t *count, l2c_error *err) {
    int n;
    cu_result result = cu->device_get_count(&n);
    if (result != CU_SUCCESS) return l2c_driver_fail(cu, result, "counting the cards", err);
    *count = n;
    return L2C_OK;
}

l2c_status l2c_device_count(const char *library, int32_t *driver, int32_t *count, l2c_error *err) {
    l2c_driver cu;
    l2c_status status = l2c_driver_load(library, &cu, err);
    if (status != L2C_OK) return status;
    *driver = cu.version;
    return count_cards(&cu, count, err);
}

static int attribute(const l2c_driver *cu, cu_device device, int number) {
    int value = 0;
    return cu->device_get_attribute(&value, number, device) == CU_SUCCESS ? value : 0;
}

static l2c_status describe(const l2c_driver *cu, int32_t number, cu_device *device, l2c_device_info *info, l2c_error *err) {
    int32_t count = 0;
    l2c_status status = count_cards(cu, &count, err);
    if (status != L2C_OK) return status;
    if (number < 0 || number >= count)
        return l2c_fail(err, L2C_ARG, "there is no card %d; the driver shows this process %d, counted from 0", number, count);
    size_t bytes = 0;
    cu_result result = cu->device_get(device, number);
    *info = (l2c_device_info){.number = number, .driver = cu->version};
    if (result == CU_SUCCESS) result = cu->device_get_name(info->name, sizeof info->name, *device);
    if (result == CU_SUCCESS) result = cu->device_get_pci_bus_id(info->pci, sizeof info->pci, *device);
    if (result == CU_SUCCESS) result = cu->device_total_mem(&bytes, *device);
    if (result != CU_SUCCESS) return l2c_driver_fail(cu, result, "looking at the card", err);
    int mode = attribute(cu, *device, CU_COMPUTE_MODE);
    info->memory = bytes;
    info->capability = 10 * attribute(cu, *device, CU_CAPABILITY_MAJOR) + attribute(cu, *device, CU_CAPABILITY_MINOR);
    info->processors = attribute(cu, *device, CU_MULTIPROCESSOR_COUNT);
    info->exclusive = mode == CU_MODE_PROHIBITED ? 2 : mode == CU_MODE_EXCLUSIVE_PROCESS;
    return L2C_OK;
}

l2c_status l2c_device_describe(const char *library, int32_t number, l2c_device_info *info, l2c_error *err) {
    l2c_driver cu;
    cu_device device;
    l2c_status status = l2c_driver_load(library, &cu, err);
    return status == L2C_OK ? describe(&cu, number, &device, info, err) : status;
}

/* ---- Opening and closing --------------------------------------------------------------------------- */

l2c_status l2c_device_open(const char *library, int32_t number, l2c_device **device, l2c_error *err) {
    l2c_device *d = l2c_memory_zeroed(1, sizeof *d);
    if (d == NULL) return l2c_fail(err, L2C_NOMEM, "out of memory for a device");
    l2c_status status = l2c_driver_load(library, &d->cu, err);
    if (status == L2C_OK) status = describe(&d->cu, number, &d->number, &d->info, err);
    if (status == L2C_OK && d->info.capability < LEAST_CAPABILITY)
        status = l2c_fail(err, L2C_UNSUPPORTED, "%s has compute capability %d.%d; %d.%d (Turing) or newer is needed",
                          d->info.name, d->info.capability / 10, d->info.capability % 10, LEAST_CAPABILITY / 10,
                          LEAST_CAPABILITY % 10);
    if (status == L2C_OK && d->info.exclusive == 2)
        status = l2c_fail(err, L2C_DEVICE, "%s is closed to computing: its compute mode is prohibited", d->info.name);
    cu_result result = status == L2C_OK ? d->cu.primary_ctx_retain(&d->context, d->number) : CU_SUCCESS;
    if (result == CU_DEVICE_UNAVAILABLE)
        status = l2c_fail(err, L2C_DEVICE, "another process holds %s, whose compute mode is %s", d->info.name,
                          d->info.exclusive ? "exclusive" : "shared");
    else if (result == CU_OUT_OF_MEMORY)
        status = l2c_fail(err, L2C_NOMEM, "%s has no memory left for another process", d->info.name);
    else if (result != CU_SUCCESS) status = l2c_driver_fail(&d->cu, result, "opening the card", err);
    if (status != L2C_OK) {
        l2c_memory_free(d);
        return status;
    }
    d->cooperative = attribute(&d->cu, d->number, CU_COOPERATIVE_LAUNCH);
    d->shared_limit = attribute(&d->cu, d->number, CU_MAX_SHARED_MEMORY_OPTIN);
    d->generation = l2c_fork_generation();
    atomic_store(&d->users, 1);
    *device = d;
    return L2C_OK;
}

l2c_device *l2c_device_keep(l2c_device *device) {
    atomic_fetch_add(&device->users, 1);
    return device;
}

void l2c_device_free(l2c_device *d) {
    if (d == NULL || atomic_fetch_sub(&d->users, 1) > 1) return;
    if (d->generation == l2c_fork_generation()) {
        /* results do not matter: of a lost card, or a process that ends, nothing can be freed */
        if (d->cu.ctx_push_current(d->context) == CU_SUCCESS) {
            cu_context popped;
            if (d->module != NULL) d->cu.module_unload(d->module);
            d->cu.ctx_pop_current(&popped);
        }
        d->cu.primary_ctx_release(d->number);
    }
    l2c_memory_free(d->compiled);
    l2c_memory_free(d);
}

uint64_t l2c_device_uploaded(const l2c_device *device) { return atomic_load(&device->uploaded); }

const l2c_device_info *l2c_device_about(const l2c_device *device) { return &device->info; }

/* ---- Calls ------------------------------------------------------------------------------------------- */

l2c_status l2c_device_enter(l2c_device *d, l2c_error *err) {
    if (d->generation != l2c_fork_generation())
        return l2c_fail(err, L2C_DEVICE, "%s was opened before fork(): this process cannot use it; open the model anew here, "
                                         "or start processes with \"spawn\"", d->info.name);
    int lost = atomic_load(&d->lost);
    if (lost != 0) {
        char doing[sizeof d->info.name + 48];
        snprintf(doing, sizeof doing, "%s is lost to this process: a computation", d->info.name);
        return l2c_driver_fail(&d->cu, lost, doing, err);
    }
    return l2c_device_check(d, d->cu.ctx_push_current(d->context), "turning to the card", err);
}

void l2c_device_leave(l2c_device *d) {
    cu_context popped;
    d->cu.ctx_pop_current(&popped);
}

l2c_status l2c_device_check(l2c_device *d, cu_result result, const char *doing, l2c_error *err) {
    if (result == CU_SUCCESS) return L2C_OK;
    if (l2c_driver_is_lost(result)) atomic_store(&d->lost, result);
    return l2c_driver_fail(&d->cu, result, doing, err);
}

l2c_status l2c_device_free_memory(l2c_device *d, uint64_t *bytes, l2c_error *err) {
    size_t free = 0, total = 0;
    l2c_status status = l2c_device_enter(d, err);
    if (status != L2C_OK) return status;
    status = l2c_device_check(d, d->cu.mem_get_info(&free, &total), "asking for free memory", err);
    l2c_device_leave(d);
    if (status == L2C_OK) *bytes = free;
    return status;
}

l2c_status l2c_device_alloc(l2c_device *d, uint64_t bytes, const char *what, cu_pointer *memory, l2c_error *err) {
    cu_result result = bytes > SIZE_MAX ? CU_OUT_OF_MEMORY : d->cu.mem_alloc(memory, (size_t)bytes);
    if (result != CU_OUT_OF_MEMORY) return l2c_device_check(d, result, "taking memory on the card", err);
    size_t free = 0, total = 0;
    d->cu.mem_get_info(&free, &total);
    return l2c_fail(err, L2C_NOMEM, "out of memory on %s: %s needs %llu bytes; %llu of %llu are free", d->info.name, what,
                    (unsigned long long)bytes, (unsigned long long)free, (unsigned long long)total);
}

/* ---- Kernels ------------------------------------------------------------------------------------------ */

static const char *const kernel_names[] = {
#define NAME(name, type) "l2c_" #name,
    L2C_GPU_KERNELS(NAME)
#undef NAME
};

/* The driver's words for what is wrong with the PTX, behind our own. */
static void add_log(l2c_error *err, const char *log) {
    size_t used = err != NULL ? strlen(err->message) : 0;
    if (err != NULL && log[0] != 0)
        snprintf(err->message + used, sizeof err->message - used, ": %.*s", (int)strcspn(log, "\n"), log);
}

static l2c_status compile(l2c_device *d, const void *ptx, size_t size, size_t *image_size, l2c_error *err) {
    char log[160] = ""; /* written as long as there is the link, as are the values */
    int options[] = {CU_JIT_ERROR_LOG, CU_JIT_ERROR_LOG_SIZE};
    void *values[] = {log, (void *)(uintptr_t)(sizeof log - 1)}, *cubin;
    cu_link link;
    l2c_status status = l2c_device_check(d, d->cu.link_create(2, options, values, &link), "compiling the kernels", err);
    if (status != L2C_OK) return status;
    void *text = (void *)(uintptr_t)ptx; /* the driver only reads it */
    cu_result result = d->cu.link_add_data(link, CU_JIT_INPUT_PTX, text, size + 1, "pyllama2c", 0, NULL, NULL);
    if (result == CU_SUCCESS) result = d->cu.link_complete(link, &cubin, image_size);
    status = l2c_device_check(d, result, "compiling the kernels", err);
    if (status == L2C_OK) {
        l2c_memory_free(d->compiled);
        d->compiled = l2c_memory_zeroed(*image_size, 1);
        if (d->compiled != NULL) memcpy(d->compiled, cubin, *image_size);
        else status = l2c_fail(err, L2C_NOMEM, "out of memory for the kernels: %zu bytes", *image_size);
    } else add_log(err, log);
    d->cu.link_destroy(link);
    return status;
}

l2c_status l2c_device_compile(l2c_device *d, const void *ptx, size_t size, const void **image, size_t *image_size,
                              l2c_error *err) {
    l2c_status status = l2c_device_enter(d, err);
    if (status != L2C_OK) return status;
    status = compile(d, ptx, size, image_size, err);
    *image = d->compiled;
    l2c_device_leave(d);
    return status;
}

static l2c_status load(l2c_device *d, const void *image, l2c_error *err) {
    cu_module module;
    cu_result result = d->cu.module_load_data_ex(&module, image, 0, NULL, NULL);
    if (result != CU_SUCCESS) return l2c_device_check(d, result, "loading the kernels", err);
    for (size_t k = 0; k < L2C_GPU_N_KERNELS && result == CU_SUCCESS; k++) {
        result = d->cu.module_get_function(&d->kernels[k], module, kernel_names[k]);
        if (result == CU_NOT_FOUND) l2c_fail(err, L2C_DEVICE, "the kernels lack %s", kernel_names[k]);
        else if (result != CU_SUCCESS) l2c_device_check(d, result, "loading the kernels", err);
    }
    /* all that a block can have: these take as much as there is (params.h) */
    static const l2c_gpu_kernel large[] = {L2C_GPU_KERNEL_attention, L2C_GPU_KERNEL_decode_1, L2C_GPU_KERNEL_decode_8};
    for (size_t i = 0; i < sizeof large / sizeof *large && result == CU_SUCCESS; i++) {
        result = d->cu.func_set_attribute(d->kernels[large[i]], CU_FUNC_MAX_DYNAMIC_SHARED, d->shared_limit);
        l2c_device_check(d, result, "loading the kernels", err);
    }
    if (result == CU_SUCCESS) d->module = module;
    else d->cu.module_unload(module);
    return result == CU_SUCCESS ? L2C_OK : L2C_DEVICE;
}

l2c_status l2c_device_load(l2c_device *d, const void *image, l2c_error *err) {
    if (d->module != NULL) return l2c_fail(err, L2C_ARG, "the device has its kernels");
    l2c_status status = l2c_device_enter(d, err);
    if (status != L2C_OK) return status;
    status = load(d, image, err);
    l2c_device_leave(d);
    return status;
}

l2c_status l2c_device_launch(l2c_device *d, cu_stream stream, l2c_gpu_launch launch, void *parameter, l2c_error *err) {
    cu_function kernel = d->kernels[launch.kernel];
    int stays = launch.kernel == L2C_GPU_KERNEL_decode_1 || launch.kernel == L2C_GPU_KERNEL_decode_8;
    cu_result result = stays ? d->cu.launch_cooperative_kernel(kernel, launch.grid_x, launch.grid_y, 1, launch.block, 1, 1,
                                                               launch.shared, stream, &parameter)
                             : d->cu.launch_kernel(kernel, launch.grid_x, launch.grid_y, 1, launch.block, 1, 1,
                                                   launch.shared, stream, &parameter, NULL);
    if (stays && (result == CU_COOPERATIVE_LAUNCH_TOO_LARGE || result == CU_NOT_SUPPORTED))
        return l2c_fail(err, L2C_UNSUPPORTED, "%s has no room for a grid that stays", d->info.name);
    return result == CU_SUCCESS ? L2C_OK : l2c_device_check(d, result, kernel_names[launch.kernel], err);
}
