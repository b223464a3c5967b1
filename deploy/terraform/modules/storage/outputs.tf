output "model_bucket" {
  description = "Bucket of weights and compiled artefacts."
  value       = aws_s3_bucket.this["models"].bucket
}

output "image_store" {
  description = "Where the service keeps pictures."
  value       = "s3://${aws_s3_bucket.this["pictures"].bucket}/${local.picture_prefix}"
}

output "database_host" {
  description = "The database's host; port 5432."
  value       = aws_db_instance.this.address
}

output "database_name" {
  description = "The database's name."
  value       = aws_db_instance.this.db_name
}

output "database_secret_arn" {
  description = "RDS's own secret: JSON with username and password."
  value       = one(aws_db_instance.this.master_user_secret[*].secret_arn)
}

output "valkey_address" {
  description = "Valkey's address, for Ray."
  value       = "rediss://${aws_elasticache_replication_group.this.primary_endpoint_address}:6379"
}

output "valkey_secret_arn" {
  description = "Secret that holds Valkey's auth token."
  value       = aws_secretsmanager_secret.valkey.arn
}

output "registry" {
  description = "ECR's host and the prefix of the images' names."
  value       = "${local.registry}/mezzotint"
}

output "data_key_arn" {
  description = "KMS key of everything that is stored."
  value       = aws_kms_key.data.arn
}
