"""The ledger: what the project's code asks of a GPU, counted without one, at true size.

    from benchmarks.ledger.fake_device import fake_cuda
    from benchmarks.ledger.cases import ForwardCase, forward_costs
    from benchmarks.ledger.runs import RunCase, run_costs

    with fake_cuda():
        forward = forward_costs(ForwardCase("sink:3,window:12,int8", size="14B", form="fused"))
        forward.costs.launches, forward.costs.bytes, forward.costs.flops, forward.costs.waits
        run = run_costs(RunCase("low memory", size="1.3B", text=True))
        run.peaks    # bytes by phase: "start", "text", "denoise", "decode"; `run.peak` is the highest

`Ledger` counts any code within `fake_cuda()`: launches, bytes, floating-point operations, places where the host waits,
copies between main memory and the device, live bytes and their peak. `python -m benchmarks ledger` prints the table.
Students run with two and three layers, and are extrapolated to their depth: every further layer costs the same.
What the method cannot show is said in `fake_device`. Peaks are live tensors: the CUDA context, workspaces of kernels
and what the allocator loses to fragmentation come on top.
"""
