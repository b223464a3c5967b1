variable "cluster_name" {
  description = "Name of the EKS cluster."
  type        = string
}

variable "kubernetes_version" {
  description = "Kubernetes version of the control plane and the system nodes."
  type        = string
  default     = "1.35"

  validation {
    condition     = contains(["1.35", "1.36"], var.kubernetes_version)
    error_message = "kubernetes_version must be 1.35 or 1.36: what the manifests and the add-ons were written for."
  }
}

variable "subnet_ids" {
  description = "Private subnets, in two zones or more, of the control plane's interfaces and of the system nodes."
  type        = list(string)
}

variable "public_access_cidrs" {
  description = "IPv4 ranges that reach the API from the internet; empty for the VPC alone."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.public_access_cidrs : can(cidrhost(cidr, 0))])
    error_message = "public_access_cidrs must hold IPv4 ranges, such as 203.0.113.7/32."
  }

  validation {
    condition     = alltrue([for cidr in var.public_access_cidrs : try(tonumber(split("/", cidr)[1]) >= 8, true)])
    error_message = "public_access_cidrs must not open the API to everybody: name the addresses that need it, such as 203.0.113.7/32."
  }
}

variable "admins" {
  description = "ARNs of IAM roles or users that govern the cluster, beside whoever applies this."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.admins : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(role|user)/.+$", arn))])
    error_message = "admins must hold ARNs of IAM roles or users, such as arn:aws:iam::111122223333:role/operator."
  }
}

variable "system_instance_types" {
  description = "Instance types of the system nodes, x86_64."
  type        = list(string)
  default     = ["m6i.large"]
}

variable "system_nodes" {
  description = "System nodes: how few, how many, how many at first."
  type = object({
    min     = optional(number, 2)
    max     = optional(number, 4)
    desired = optional(number, 2)
  })
  default = {}

  validation {
    condition     = var.system_nodes.min >= 2 && var.system_nodes.min <= var.system_nodes.desired && var.system_nodes.desired <= var.system_nodes.max
    error_message = "system_nodes must have 2 <= min <= desired <= max: Karpenter's two replicas do not share a node."
  }
}

variable "addon_versions" {
  description = "Versions of EKS add-ons, such as { coredns = \"v1.12.4-eksbuild.1\" }; what is not named gets EKS's default and stays there."
  type        = map(string)
  default     = {}
}

variable "logs_key_arn" {
  description = "KMS key of the control plane's log group."
  type        = string
}

variable "log_days" {
  description = "Days that the control plane's logs are kept."
  type        = number
  default     = 365

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731], var.log_days)
    error_message = "log_days must be a retention that CloudWatch knows, such as 30, 90 or 365."
  }
}
