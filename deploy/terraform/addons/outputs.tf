output "versions" {
  description = "Version of each chart, and of Gateway API."
  value       = module.addons.versions
}

output "storage_class" {
  description = "The default storage class."
  value       = module.addons.storage_class
}
