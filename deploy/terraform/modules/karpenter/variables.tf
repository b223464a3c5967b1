variable "cluster_name" {
  description = "Name of the EKS cluster; it must exist."
  type        = string
}

variable "cluster_arn" {
  description = "ARN of the EKS cluster."
  type        = string
}
