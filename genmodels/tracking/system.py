"""What the machine is doing, under the names that MLflow's page of system metrics knows."""

import psutil

try:
    import pynvml  # of the optional extra `gpu`
except ImportError:
    pynvml = None


def system_metrics() -> dict[str, float]:
    """Use of processors, memory, disk, network (since the machine's start) and NVIDIA GPUs of this node.

    The processors' share is the mean since the thread's previous call; its first call gives 0.
    """
    memory, disk, network = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
        "system/disk_usage_percentage": disk.percent,
        "system/disk_available_megabytes": disk.free / 1e6,
        "system/network_receive_megabytes": network.bytes_recv / 1e6,
        "system/network_transmit_megabytes": network.bytes_sent / 1e6,
        **_gpu_metrics(),
    }


def _gpu_metrics() -> dict[str, float]:
    if pynvml is None:
        return {}
    values = {}
    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory, rates = pynvml.nvmlDeviceGetMemoryInfo(gpu), pynvml.nvmlDeviceGetUtilizationRates(gpu)
            values[f"system/gpu_{index}_utilization_percentage"] = float(rates.gpu)
            values[f"system/gpu_{index}_memory_usage_megabytes"] = float(memory.used) / 1e6
            values[f"system/gpu_{index}_memory_usage_percentage"] = 100 * float(memory.used) / float(memory.total)
            values[f"system/gpu_{index}_power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000
    except pynvml.NVMLError:  # no driver, or a GPU in parts (MIG), of which it tells no use
        return {}
    return values
