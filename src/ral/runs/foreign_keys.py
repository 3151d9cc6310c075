"""Translates keys of other libraries' recipes: what each is here."""

from __future__ import annotations

_FLAT = "written flat: each of its keys by its own name, such as `learning_rate: 1e-6`"
_BATCH = "`per_device_train_batch_size`, in completions, times `gradient_accumulation_steps` and the processes"
_SERVER = "an option of the server's own command, `vllm serve`"
_LAUNCH = "an option of the launcher: `accelerate launch --num_processes …`"
_COLUMNS = "`columns`, such as `columns: {problem: caption}`"

#: Key → the libraries that have it, and what it is here.
FOREIGN: dict[str, tuple[str, str]] = {
    # --- the model and the data
    "model_name_or_path": ("TRL", "`model`"),
    "model_path": ("EasyR1", "`model`"),
    "dataset": ("ms-swift", "`data`"),
    "dataset_name": ("TRL", "`data`"),
    "train_files": ("EasyR1 and verl", "`data`"),
    "val_dataset": ("ms-swift", "`eval_data`"),
    "val_files": ("EasyR1 and verl", "`eval_data`"),
    "image_dir": ("EasyR1", "`data_root`"),
    "prompt_key": ("EasyR1 and verl", _COLUMNS),
    "answer_key": ("EasyR1", _COLUMNS),
    "image_key": ("EasyR1 and verl", _COLUMNS),
    "system": ("ms-swift", "`system_prompt`"),
    "format_prompt": ("EasyR1", "`prompt_template`, with `{problem}` where the problem stands"),
    # --- what is trained
    "use_peft": ("TRL", "`peft`, such as `peft: {r: 16, target_modules: all-linear}`"),
    "train_type": ("ms-swift", "`peft` for an adapter; all weights are trained without it"),
    "tuner_type": ("ms-swift", "`peft` for an adapter; all weights are trained without it"),
    "lora_r": ("TRL", "`peft: {r: …}`"),
    "lora_rank": ("ms-swift and EasyR1", "`peft: {r: …}`"),
    "lora_alpha": ("TRL and ms-swift", "`peft: {lora_alpha: …}`"),
    "lora_dropout": ("TRL and ms-swift", "`peft: {lora_dropout: …}`"),
    "lora_target_modules": ("TRL", "`peft: {target_modules: …}`"),
    "target_modules": ("ms-swift", "`peft: {target_modules: …}`"),
    "load_in_4bit": ("TRL", "`quantization: {load_in_4bit: true}`"),
    "freeze_vit": ("ms-swift", "`freeze_vision`"),
    "freeze_aligner": ("ms-swift", "`freeze_vision`, tower and projector together"),
    "freeze_vision_tower": ("EasyR1", "`freeze_vision`"),
    "torch_dtype": ("TRL and ms-swift", "`bf16: true`, mixed precision on float32 weights"),
    "attn_implementation": ("TRL", "`attention_kernel`"),
    "attn_impl": ("ms-swift", "`attention_kernel`"),
    # --- GRPO
    "rlhf_type": ("ms-swift", "nothing: `ral train` is GRPO with the attention term"),
    "adv_estimator": ("EasyR1 and verl", "nothing: `ral train` is GRPO with the attention term"),
    "kl_coef": ("EasyR1", "`beta`"),
    "kl_loss_coef": ("verl", "`beta`"),
    "clip_ratio": ("verl", "`epsilon`"),
    "clip_ratio_low": ("EasyR1 and verl", "`epsilon`"),
    "clip_ratio_high": ("EasyR1 and verl", "`epsilon_high`"),
    "loss_avg_mode": ("EasyR1", "`loss_type`"),
    "loss_agg_mode": ("verl", "`loss_type`"),
    "clip_ratio_c": ("verl", "`delta`"),
    "entropy_coeff": ("verl", "`entropy_coef`"),
    "norm_adv_by_std_in_grpo": ("verl", "`scale_rewards`, group or none"),
    "filter_groups": ("verl", "`dynamic_sampling`, with `max_resample_times`"),
    "dynamic_sample": ("ms-swift", "`dynamic_sampling`"),
    "overlong_filter": ("ms-swift", "`mask_truncated_completions`"),
    "soft_cache_length": ("ms-swift", "`soft_punish_cache`, with soft_overlong_punishment in `reward_funcs`"),
    "overlong_buffer": ("verl", "`soft_punish_cache`, with soft_overlong_punishment in `reward_funcs`"),
    "tau_pos": ("ms-swift", "`sapo_temperature_pos`"),
    "tau_neg": ("ms-swift", "`sapo_temperature_neg`"),
    "generation_batch_size": ("TRL and ms-swift", "`steps_per_generation`, in micro-batches of a process"),
    "reward_model": ("ms-swift", "`reward_funcs`, with the model's folder or hub id"),
    "ppo_epochs": ("EasyR1 and verl", "`num_iterations`"),
    "ppo_mini_batch_size": ("verl", _BATCH),
    "train_batch_size": ("verl", _BATCH),
    "rollout_batch_size": ("EasyR1", _BATCH),
    "external_plugins": ("ms-swift", "`reward_funcs`"),
    "reward_function": ("EasyR1", "`reward_funcs`"),
    "custom_reward_function": ("verl", "`reward_funcs`"),
    # --- rollouts
    "use_vllm": ("TRL and ms-swift", "`rollout_engine: vllm`"),
    "vllm_mode": ("TRL and ms-swift", "`rollout_engine: vllm`, with a server at `vllm_url`; colocate: `vllm_sleep: true`"),
    "vllm_enable_sleep_mode": ("TRL and ms-swift", "`vllm_sleep`"),
    "vllm_server_base_url": ("TRL and ms-swift", "`vllm_url`"),
    "vllm_server_host": ("TRL and ms-swift", "`vllm_url`, such as `vllm_url: http://127.0.0.1:8000`"),
    "vllm_server_port": ("TRL and ms-swift", "`vllm_url`, such as `vllm_url: http://127.0.0.1:8000`"),
    "vllm_gpu_memory_utilization": ("TRL and ms-swift", _SERVER),
    "vllm_tensor_parallel_size": ("TRL and ms-swift", _SERVER),
    "gpu_memory_utilization": ("EasyR1 and verl", _SERVER),
    "tensor_parallel_size": ("EasyR1", _SERVER),
    "n": ("EasyR1 and verl", "`num_generations`"),
    "max_response_length": ("EasyR1 and verl", "`max_completion_length`"),
    # --- the run
    "lr": ("EasyR1 and verl", "`learning_rate`"),
    "total_epochs": ("EasyR1 and verl", "`num_train_epochs`"),
    "total_training_steps": ("verl", "`max_steps`"),
    "save_freq": ("EasyR1 and verl", "`save_steps`"),
    "val_freq": ("EasyR1", "`eval_steps`"),
    "test_freq": ("verl", "`eval_steps`"),
    "experiment_name": ("EasyR1 and verl", "`run_name`"),
    "save_checkpoint_path": ("EasyR1", "`output_dir`"),
    "default_local_dir": ("verl", "`output_dir`"),
    "n_gpus_per_node": ("EasyR1 and verl", _LAUNCH),
    "nnodes": ("EasyR1 and verl", _LAUNCH),
    "algorithm": ("EasyR1 and verl", _FLAT),
    "worker": ("EasyR1", _FLAT),
    "trainer": ("EasyR1 and verl", _FLAT),
    "actor_rollout_ref": ("verl", _FLAT),
}  # fmt: skip


def translated(key: str) -> str | None:
    """What a key of another library is here, as a sentence without its end; None of a key that no table has."""
    if key not in FOREIGN:
        return None
    libraries, here = FOREIGN[key]
    return f"`{key}` is a key of {libraries}; here it is {here}"
