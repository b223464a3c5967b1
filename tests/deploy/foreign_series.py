"""Series that rules and dashboard use and that others export, with the labels that are asked of them.

Most cannot be held against their exporter without a cluster, so each block names what it was read from. A
series that is not listed may not be used.
"""

from __future__ import annotations

__all__ = ["FOREIGN", "TARGET_LABELS"]

# What Prometheus and its operator add to every series that they scrape.
TARGET_LABELS = frozenset({"job", "instance", "namespace", "pod", "container"})

FOREIGN: dict[str, frozenset[str]] = {
    # Prometheus itself.
    "up": frozenset(),
    # Envoy 1.40, as its /stats/prometheus tells them: tests/deploy/test_foreign_series.py asks a real one.
    "envoy_server_live": frozenset(),
    "envoy_http_downstream_rq_xx": frozenset({"envoy_response_code_class", "envoy_http_conn_manager_prefix"}),
    "envoy_http_downstream_cx_active": frozenset({"envoy_http_conn_manager_prefix"}),
    "envoy_http_downstream_rq_active": frozenset({"envoy_http_conn_manager_prefix"}),
    "envoy_http_downstream_rq_header_timeout": frozenset({"envoy_http_conn_manager_prefix"}),
    "envoy_http_downstream_rq_idle_timeout": frozenset({"envoy_http_conn_manager_prefix"}),
    "envoy_http_downstream_rq_overload_close": frozenset({"envoy_http_conn_manager_prefix"}),
    "envoy_http_downstream_cx_overload_disable_keepalive": frozenset({"envoy_http_conn_manager_prefix"}),
    "envoy_listener_downstream_cx_overflow": frozenset({"envoy_listener_address"}),
    "envoy_listener_downstream_global_cx_overflow": frozenset({"envoy_listener_address"}),
    "envoy_listener_downstream_cx_overload_reject": frozenset({"envoy_listener_address"}),
    "envoy_cluster_upstream_rq_retry": frozenset({"envoy_cluster_name"}),
    "envoy_cluster_upstream_rq_timeout": frozenset({"envoy_cluster_name"}),
    "envoy_cluster_upstream_rq_pending_overflow": frozenset({"envoy_cluster_name"}),
    "envoy_cluster_upstream_cx_overflow": frozenset({"envoy_cluster_name"}),
    "envoy_cluster_circuit_breakers_default_cx_open": frozenset({"envoy_cluster_name"}),
    "envoy_cluster_circuit_breakers_default_rq_open": frozenset({"envoy_cluster_name"}),
    "envoy_cluster_circuit_breakers_default_rq_pending_open": frozenset({"envoy_cluster_name"}),
    # Ray 2.60: ray/dashboard/modules/reporter/reporter_agent.py and ray/serve/_private/*.py; those without a
    # device are asked of a real Ray by tests/deploy/test_watched.py.
    "ray_node_mem_used": frozenset(),
    "ray_node_mem_total": frozenset(),
    "ray_node_gpus_utilization": frozenset({"GpuIndex", "GpuDeviceName"}),
    "ray_serve_application_status": frozenset({"application"}),
    "ray_serve_autoscaling_target_replicas": frozenset({"application", "deployment"}),
    "ray_serve_proxy_status": frozenset({"node_id", "node_ip_address"}),
    # KubeRay's operator: docs.ray.io, "KubeRay metrics references". The label `condition`, true or false at a
    # value of 1, is in ray_service_metrics.go alone.
    "kuberay_service_info": frozenset({"name"}),
    "kuberay_service_condition_ready": frozenset({"name", "condition"}),
    "kuberay_service_condition_upgrade_in_progress": frozenset({"name", "condition"}),
    # kube-state-metrics: docs/metrics/workload/{pod,deployment}-metrics.md.
    "kube_pod_status_phase": frozenset({"phase"}),
    "kube_pod_status_ready": frozenset({"condition"}),
    "kube_pod_container_status_restarts_total": frozenset(),
    "kube_deployment_spec_replicas": frozenset({"deployment"}),
    "kube_deployment_status_replicas_available": frozenset({"deployment"}),
    # Karpenter 1.14: karpenter.sh/v1.14/reference/metrics.
    "operator_nodeclaim_status_condition_current_status_seconds": frozenset(
        {"name", "type", "status", "reason"}
    ),
    "karpenter_nodepools_usage": frozenset({"nodepool", "resource_type"}),
    "karpenter_nodepools_limit": frozenset({"nodepool", "resource_type"}),
    "karpenter_cloudprovider_errors_total": frozenset({"controller", "method", "provider", "error"}),
    # neuron-monitor's Prometheus exporter: AWS Neuron documentation, "Neuron Monitor User Guide".
    "neuroncore_utilization_ratio": frozenset({"instance_id", "neuroncore", "runtime_tag"}),
}
