variable "cluster_name" {
  description = "Name of the EKS cluster, for names; it need not exist yet."
  type        = string
}

variable "cluster_arn" {
  description = "ARN of the EKS cluster, for the service's role."
  type        = string
}

variable "vpc_id" {
  description = "The VPC."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets, in two zones or more."
  type        = list(string)
}

variable "client_security_group_id" {
  description = "Security group whose members reach the database and the cache: the cluster's."
  type        = string
}

variable "keep_data" {
  description = "Whether removal is refused while there is data: buckets, images, database. With false, all of it goes with `terraform destroy`."
  type        = bool
  default     = true
}

variable "multi_zone" {
  description = "Whether database and cache have a second machine in another zone, which takes over. Doubles their cost."
  type        = bool
  default     = false
}

variable "database_instance_class" {
  description = "RDS instance class."
  type        = string
  default     = "db.t4g.medium"
}

variable "database_gib" {
  description = "GiB of the database's disk at first; it grows to five times as much."
  type        = number
  default     = 20

  validation {
    condition     = var.database_gib >= 20 && var.database_gib <= 13000
    error_message = "database_gib must be 20 to 13000."
  }
}

variable "backup_days" {
  description = "Days that the database's backups are kept, 1 to 35."
  type        = number
  default     = 7

  validation {
    condition     = var.backup_days >= 1 && var.backup_days <= 35
    error_message = "backup_days must be 1 to 35: a production database without backups is refused."
  }
}

variable "cache_node_type" {
  description = "ElastiCache node type."
  type        = string
  default     = "cache.t4g.small"
}

variable "picture_days" {
  description = "Days after which the bucket itself forgets a picture: a net below the service's own sweep, so longer than MEZZOTINT_JOB_TTL_S and 30 days."
  type        = number
  default     = 60

  validation {
    condition     = var.picture_days >= 1
    error_message = "picture_days must be 1 or more."
  }
}

variable "model_uri" {
  description = "What engines' pods fetch, where it is in another bucket than this one's: s3://bucket/prefix. Its own KMS key must let them decrypt, where it has one."
  type        = string
  default     = null

  validation {
    condition     = var.model_uri == null ? true : can(regex("^s3://[a-z0-9][a-z0-9.-]+/+[^/]", var.model_uri))
    error_message = "model_uri must be of the form s3://bucket/prefix, as `mezzotint models push` or `compile` left it."
  }
}

variable "maintenance_window" {
  description = "When AWS may restart database and cache, in UTC: ddd:hh:mm-ddd:hh:mm, an hour or more; the database's backup is in the hour after it. Null for times of AWS's choice."
  type        = string
  default     = null

  validation {
    condition     = var.maintenance_window == null ? true : can(regex("^(mon|tue|wed|thu|fri|sat|sun):([01][0-9]|2[0-3]):[0-5][0-9]-(mon|tue|wed|thu|fri|sat|sun):([01][0-9]|2[0-3]):[0-5][0-9]$", var.maintenance_window))
    error_message = "maintenance_window must be of the form sun:03:00-sun:04:00, in UTC."
  }
}

variable "apply_now" {
  description = "Whether changes that restart database or cache are made by the apply itself, and not in the next maintenance window."
  type        = bool
  default     = false
}

variable "create_repositories" {
  description = "Whether to make the ECR repositories; false in an account and region that has them from another cluster."
  type        = bool
  default     = true
}

variable "logs_key_arn" {
  description = "KMS key of log groups."
  type        = string
}

variable "log_days" {
  description = "Days that the database's logs are kept."
  type        = number
  default     = 365

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731], var.log_days)
    error_message = "log_days must be a retention that CloudWatch knows, such as 30, 90 or 365."
  }
}
