output "cluster_name" {
  description = "The cluster's name, once it and its system nodes are there."
  value       = aws_eks_cluster.this.name
  depends_on  = [aws_eks_addon.after_nodes]
}

output "cluster_arn" {
  description = "The cluster's ARN."
  value       = aws_eks_cluster.this.arn
}

output "cluster_endpoint" {
  description = "Address of the API."
  value       = aws_eks_cluster.this.endpoint
}

output "cluster_version" {
  description = "Kubernetes version of the control plane."
  value       = aws_eks_cluster.this.version
}

output "cluster_security_group_id" {
  description = "Security group of the control plane and of every node."
  value       = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
}
