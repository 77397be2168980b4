"""What TRL and transformers get wrong for us, mended here until they mend it. Nothing of the method is in here.

| module | upstream | can go when |
|---|---|---|
| `continuous_batching` | trl 1.16 turns the policy's weights into bf16 for good | TRL generates from a copy |
| `evaluation` | others flip TRL's training flag; test sets, batches, tables mix | it is told, and keeps them apart |
| `exact_resume` | TRL is exact only after a used-up batch in the first epoch | it saves its waiting rollouts |
| `vllm_weights` | TRL hands weights to vLLM by the number of the step | it does where they have changed |
| `zero3_order` | DeepSpeed fetches parameters in the order of decoding, not of training | it notices by itself |

Each is a mixin of its own over a `GRPOTrainer`-shaped class, or a function; none knows of the contrastive head. A
trainer takes them together, as `mended.MendedMixin`.
"""
