mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "111122223333" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws", dns_suffix = "amazonaws.com" }
  }
  mock_data "aws_region" {
    defaults = { region = "eu-north-1" }
  }
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-north-1:111122223333:key/data" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::111122223333:role/mock" }
  }
  mock_resource "aws_secretsmanager_secret" {
    defaults = { arn = "arn:aws:secretsmanager:eu-north-1:111122223333:secret:plate/valkey" }
  }
  mock_resource "aws_db_instance" {
    defaults = { address = "plate.rds.example", master_user_secret = [{ secret_arn = "arn:aws:secretsmanager:eu-north-1:111122223333:secret:rds" }] }
  }
  mock_resource "aws_elasticache_replication_group" {
    defaults = { primary_endpoint_address = "plate.cache.example" }
  }
}

override_resource {
  target = aws_s3_bucket.this["models"]
  values = { arn = "arn:aws:s3:::plate-models-111122223333", id = "plate-models-111122223333" }
}

override_resource {
  target = aws_s3_bucket.this["pictures"]
  values = { arn = "arn:aws:s3:::plate-pictures-111122223333", id = "plate-pictures-111122223333" }
}

mock_provider "random" {
  mock_resource "random_password" {
    defaults = { result = "a-token-of-forty-eight-letters-that-is-no-secret" }
  }
}

variables {
  cluster_name             = "plate"
  cluster_arn              = "arn:aws:eks:eu-north-1:111122223333:cluster/plate"
  vpc_id                   = "vpc-0123456789abcdef0"
  subnet_ids               = ["subnet-a", "subnet-b"]
  client_security_group_id = "sg-0123456789abcdef0"
  logs_key_arn             = "arn:aws:kms:eu-north-1:111122223333:key/logs"
}

run "buckets" {
  assert {
    condition     = alltrue([for block in aws_s3_bucket_public_access_block.this : block.block_public_acls && block.block_public_policy && block.ignore_public_acls && block.restrict_public_buckets]) && length(aws_s3_bucket_public_access_block.this) == 2
    error_message = "Neither bucket may be public."
  }

  assert {
    condition     = alltrue([for encryption in aws_s3_bucket_server_side_encryption_configuration.this : one(one(encryption.rule).apply_server_side_encryption_by_default).kms_master_key_id == aws_kms_key.data.arn])
    error_message = "Both buckets must be encrypted with the key."
  }

  assert {
    condition     = alltrue([for policy in aws_s3_bucket_policy.tls_only : jsondecode(policy.policy).Statement[0].Effect == "Deny" && jsondecode(policy.policy).Statement[0].Condition.Bool["aws:SecureTransport"] == "false"])
    error_message = "Both buckets must refuse what comes without TLS."
  }

  assert {
    condition     = alltrue([for versioning in aws_s3_bucket_versioning.this : versioning.versioning_configuration[0].status == "Enabled"])
    error_message = "Both buckets must be versioned."
  }

  assert {
    condition     = aws_s3_bucket_lifecycle_configuration.pictures.rule[0].expiration[0].days == 60 && length(aws_s3_bucket_lifecycle_configuration.models.rule[0].expiration) == 0
    error_message = "Pictures are forgotten, models are not."
  }

  assert {
    condition     = alltrue([for bucket in aws_s3_bucket.this : !bucket.force_destroy])
    error_message = "Buckets that hold something must not be removed by default."
  }

  assert {
    condition     = output.image_store == "s3://plate-pictures-111122223333/images" && output.model_bucket == "plate-models-111122223333"
    error_message = "The outputs must name the buckets."
  }
}

run "the_service_reads_models_and_writes_pictures_and_no_more" {
  assert {
    condition     = aws_eks_pod_identity_association.service.cluster_name == "plate" && aws_eks_pod_identity_association.service.namespace == "mezzotint" && aws_eks_pod_identity_association.service.service_account == "mezzotint"
    error_message = "The role must be that of ServiceAccount mezzotint in namespace mezzotint."
  }

  assert {
    condition = alltrue([
      for statement in jsondecode(aws_iam_role_policy.service.policy).Statement :
      alltrue([for action in flatten([statement.Action]) : contains(["s3:ListBucket", "s3:GetObject"], action)])
      if strcontains(jsonencode(statement.Resource), "plate-models")
    ])
    error_message = "Models must be read only."
  }

  assert {
    condition     = !strcontains(aws_iam_role_policy.service.policy, "\"*\"") && !strcontains(aws_iam_role_policy.service.policy, "s3:*")
    error_message = "No right on every resource, and no right to everything."
  }

  assert {
    condition     = one([for statement in jsondecode(aws_iam_role_policy.service.policy).Statement : statement if statement.Sid == "ReadAndWritePictures"]).Resource == "arn:aws:s3:::plate-pictures-111122223333/images/*"
    error_message = "Pictures must be written below the prefix that image_store names."
  }
}

run "a_model_in_another_bucket_is_read_too" {
  variables {
    model_uri = "s3://elsewhere/anime/v2/"
  }

  assert {
    condition     = one([for statement in jsondecode(aws_iam_role_policy.service.policy).Statement : statement if statement.Sid == "ReadModels"]).Resource == ["arn:aws:s3:::plate-models-111122223333/*", "arn:aws:s3:::elsewhere/anime/v2/*"]
    error_message = "Pods must read what they are told to fetch, and nothing beside it."
  }

  assert {
    condition     = one([for statement in jsondecode(aws_iam_role_policy.service.policy).Statement : statement if statement.Sid == "ListModels"]).Resource == ["arn:aws:s3:::plate-models-111122223333", "arn:aws:s3:::elsewhere"]
    error_message = "Without a right to list, S3 says of what is missing that it is forbidden."
  }
}

run "a_name_is_no_place_of_a_model" {
  command = plan

  variables {
    model_uri = "sdxl"
  }

  expect_failures = [var.model_uri]
}

run "database" {
  assert {
    condition     = aws_db_instance.this.storage_encrypted && aws_db_instance.this.kms_key_id == aws_kms_key.data.arn && !aws_db_instance.this.publicly_accessible
    error_message = "The database must be encrypted and private."
  }

  assert {
    condition     = aws_db_instance.this.manage_master_user_password
    error_message = "RDS must make and keep the password."
  }

  assert {
    condition     = anytrue([for parameter in aws_db_parameter_group.this.parameter : parameter.name == "rds.force_ssl" && parameter.value == "1"])
    error_message = "The database must refuse what comes without TLS."
  }

  assert {
    condition     = aws_db_instance.this.deletion_protection && !aws_db_instance.this.skip_final_snapshot && aws_db_instance.this.backup_retention_period > 0
    error_message = "By default the database must be backed up and hard to lose."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.database.referenced_security_group_id == "sg-0123456789abcdef0" && aws_vpc_security_group_ingress_rule.database.to_port == 5432
    error_message = "Only the cluster may reach the database."
  }

  assert {
    condition     = output.database_host == "plate.rds.example" && output.database_name == "mezzotint" && output.database_secret_arn == "arn:aws:secretsmanager:eu-north-1:111122223333:secret:rds"
    error_message = "The outputs must say where the database is and who may enter."
  }
}

run "cache" {
  assert {
    condition     = aws_elasticache_replication_group.this.engine == "valkey" && tobool(aws_elasticache_replication_group.this.at_rest_encryption_enabled) && aws_elasticache_replication_group.this.transit_encryption_enabled && aws_elasticache_replication_group.this.transit_encryption_mode == "required"
    error_message = "Valkey must be encrypted, at rest and on its way."
  }

  assert {
    condition     = aws_elasticache_replication_group.this.auth_token == aws_secretsmanager_secret_version.valkey.secret_string
    error_message = "Valkey's token must be the one in the secret."
  }

  assert {
    condition     = anytrue([for parameter in aws_elasticache_parameter_group.this.parameter : parameter.name == "maxmemory-policy" && parameter.value == "noeviction"])
    error_message = "Ray's state must not be evicted."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.cache.referenced_security_group_id == "sg-0123456789abcdef0" && output.valkey_address == "rediss://plate.cache.example:6379"
    error_message = "Only the cluster may reach Valkey, and only over TLS."
  }
}

run "registry" {
  assert {
    condition     = toset([for repository in aws_ecr_repository.this : repository.name]) == toset(["mezzotint/cpu", "mezzotint/cuda", "mezzotint/neuron", "mezzotint/ui"])
    error_message = "Each image must have its repository."
  }

  assert {
    condition     = alltrue([for repository in aws_ecr_repository.this : repository.image_tag_mutability == "IMMUTABLE" && repository.image_scanning_configuration[0].scan_on_push && repository.encryption_configuration[0].encryption_type == "KMS"])
    error_message = "Tags must stay what they are, images be scanned and encrypted."
  }

  assert {
    condition     = output.registry == "111122223333.dkr.ecr.eu-north-1.amazonaws.com/mezzotint"
    error_message = "The registry must be ECR's host and prefix."
  }
}

run "everything_can_be_let_go" {
  command = plan

  variables {
    keep_data = false
  }

  assert {
    condition     = alltrue([for bucket in aws_s3_bucket.this : bucket.force_destroy]) && alltrue([for repository in aws_ecr_repository.this : repository.force_delete])
    error_message = "Buckets and repositories must go with what they hold."
  }

  assert {
    condition     = !aws_db_instance.this.deletion_protection && aws_db_instance.this.skip_final_snapshot && aws_db_instance.this.delete_automated_backups && aws_secretsmanager_secret.valkey.recovery_window_in_days == 0
    error_message = "Neither database nor secret may hold up the removal, or leave something that is billed."
  }
}

run "a_restart_waits_for_its_window" {
  command = plan

  variables {
    maintenance_window = "sun:03:00-sun:04:00"
  }

  assert {
    condition     = aws_db_instance.this.maintenance_window == "sun:03:00-sun:04:00" && aws_elasticache_replication_group.this.maintenance_window == "sun:03:00-sun:04:00"
    error_message = "Database and cache must be restarted when the site says."
  }

  assert {
    condition     = aws_db_instance.this.backup_window == "04:00-05:00"
    error_message = "A backup must not be due in the maintenance's time: AWS refuses that."
  }

  assert {
    condition     = !aws_db_instance.this.apply_immediately && !aws_elasticache_replication_group.this.apply_immediately
    error_message = "By default an apply must restart neither."
  }
}

run "a_window_to_midnight" {
  command = plan

  variables {
    maintenance_window = "sat:22:30-sat:23:30"
  }

  assert {
    condition     = aws_db_instance.this.backup_window == "23:30-00:30"
    error_message = "The backup must be made in the hour after it, whatever the day."
  }
}

run "a_restart_may_be_had_at_once" {
  command = plan

  variables {
    apply_now = true
  }

  assert {
    condition     = aws_db_instance.this.apply_immediately && aws_elasticache_replication_group.this.apply_immediately
    error_message = "apply_now must hold for both."
  }
}

run "a_day_is_no_window" {
  command = plan

  variables {
    maintenance_window = "Sunday"
  }

  expect_failures = [var.maintenance_window]
}

run "two_zones" {
  command = plan

  variables {
    multi_zone = true
  }

  assert {
    condition     = aws_db_instance.this.multi_az && aws_elasticache_replication_group.this.multi_az_enabled && aws_elasticache_replication_group.this.automatic_failover_enabled && aws_elasticache_replication_group.this.num_cache_clusters == 2
    error_message = "Database and Valkey must each have a second machine that takes over."
  }
}

run "repositories_of_another_cluster" {
  command = plan

  variables {
    create_repositories = false
  }

  assert {
    condition     = length(aws_ecr_repository.this) == 0 && output.registry == "111122223333.dkr.ecr.eu-north-1.amazonaws.com/mezzotint"
    error_message = "The registry is the account's, whoever made its repositories."
  }
}

run "no_backups_are_refused" {
  command = plan

  variables {
    backup_days = 0
  }

  expect_failures = [var.backup_days]
}
